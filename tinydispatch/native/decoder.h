/* A decoder and its memory, as tinydispatch/native/bindings.py fills them in. What a file does not have is NULL.
 *
 * Numbers are 32-bit floats but for the cache (16-bit floats) and the weights of matrices (4 to 8 bits).
 */
#pragma once

#include <stdint.h>

enum { BLOCK = 32, SUPER_BLOCK = 256, KEY_BLOCK = 16, MOST_ROWS = 8 };

/* Formats of matrices, as GGUF names these types. */
enum { TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_Q5_0 = 6, TYPE_Q5_1 = 7, TYPE_Q8_0 = 8 };
enum { TYPE_Q4_K = 12, TYPE_Q5_K = 13, TYPE_Q6_K = 14 };

/* y = W x + bias. Tiles of LANES outputs, the last of which may be longer than what is left; pack.h lays them out. */
typedef struct {
    const uint8_t *quants, *scales;
    const float *bias; /* (n_out) */
    int64_t n_in, n_out, type;
} Matrix;

typedef struct {
    const float *weight, *bias;
} Norm;

typedef struct {
    Norm attention_norm, feed_forward_norm, query_norm, key_norm;
    Matrix query, key, value, output, gate, up, down;
    uint16_t *keys;   /* (key heads, cells / KEY_BLOCK, head_width, KEY_BLOCK) */
    uint16_t *values; /* (key heads, cells, head_width) */
} Layer;

/* Rows of activations in 8 bits: numbers, a scale for each block, and the sum of each half of one. */
typedef struct {
    int8_t *quants;
    float *scales;
    int32_t *sums;
} Quantized;

enum { ACTIVATION_SILU_GATED = 0, ACTIVATION_RELU = 1, ACTIVATION_GELU = 2 };

typedef struct {
    int32_t n_layers, n_heads, n_key_heads, n_cells, n_threads;
    int32_t is_pre_norm, is_rms, activation;
    float epsilon;
    int64_t width, embedding_width, head_width, feed_forward_width;
    const float *rotation; /* (cells, 2, head_width / 2): cosines, then sines */
    Matrix project_in, project_out, head;
    Norm final_norm;
    Layer *layers;
    /* Memory for one batch, a row for each id; scores hold MOST_ROWS rows of cells for each thread. The caller writes
     * the ids' rows to `embedded`, and what is added for their positions to `placed`. */
    float *embedded, *placed;
    float *stream, *query, *key, *value, *attended, *hidden, *gate, *scores;
    Quantized input;
    struct Pool *pool; /* NULL: the calling thread alone */
} Decoder;
