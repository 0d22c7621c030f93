/* A decoder's forward pass on quantized weights: Llama's, Qwen's and OPT's layers, in whatever sizes and numbers of threads.
 *
 * All threads run `compute_batch`, phase by phase; threads.h says how they share them. T ids come in, R of them with
 * logits: after the last layer's keys and values only those R rows are computed.
 */
#include "attention.h"
#include "decoder.h"
#include "layers.h"
#include "product.h"
#include "threads.h"

typedef struct {
    const Decoder *decoder;
    int64_t n_ids, first, n_outputs;
    float *logits;
} Batch;

/* Rows [start, stop) of a batch, as one thread sees them. */
typedef struct {
    const Decoder *d;
    int64_t start, stop;
    Worker *w;
} Rows;

/* Phases that a layer has at most, and those outside of layers. A matrix is multiplied by in so many pieces a thread. */
enum { LAYER_PHASES = 15, OTHER_PHASES = 7, PIECES = 2 };

/* The outer loop takes a piece, the inner one runs once and names its row. */
#define FOR_ROWS(r, row) \
    FOR_PIECES((r).w, row##_piece, (r).stop - (r).start) \
    for (int64_t row = (r).start + row##_piece, once = 1; once; once = 0)

static void meet_rows(Rows r) {
    leave(r.w, r.stop - r.start);
    meet(r.w);
}

/* Norm rows of `x` in place, where there is a norm; then round them. */
static void prepare(Rows r, const Norm *its_norm, int is_in_place, float *x, int64_t width) {
    FOR_ROWS(r, row) {
        float *from = x + row * width, *to = is_in_place ? from : r.d->hidden + row * width;
        if (its_norm && its_norm->weight) norm(*its_norm, r.d->is_rms, r.d->epsilon, from, width, to);
        else to = from;
        quantize(to, width, row, r.d->input);
    }
    meet_rows(r);
}

static void norm_stream(Rows r, Norm its_norm) {
    FOR_ROWS(r, row) {
        float *x = r.d->stream + row * r.d->width;
        norm(its_norm, r.d->is_rms, r.d->epsilon, x, r.d->width, x);
    }
    meet_rows(r);
}

/* Not waited for: what reads `out` has to `meet` first. */
static void product(Rows r, const Matrix *m, int adds, float *out) {
    const int64_t n_pieces = r.w->pool ? PIECES * r.d->n_threads : 1;
    FOR_PIECES(r.w, piece, n_pieces) multiply(m, r.d->input, r.start, r.stop, adds, out, piece, n_pieces);
    leave(r.w, n_pieces);
}

static void embed(Rows r) {
    const Decoder *d = r.d;
    if (d->project_in.quants) {
        prepare(r, NULL, 1, d->embedded, d->embedding_width);
        product(r, &d->project_in, 0, d->stream);
        meet(r.w);
    }
    FOR_ROWS(r, row) {
        const int64_t start = row * d->width;
        if (!d->project_in.quants) memcpy(d->stream + start, d->embedded + start, (size_t)d->width * sizeof(float));
        if (d->placed)
            for (int64_t i = 0; i < d->width; i++) d->stream[start + i] += d->placed[start + i];
    }
    meet_rows(r);
}

/* Norm and turn queries and keys, and write the new keys and values to the cache. */
static void place_heads(Rows r, const Layer *layer, int64_t first) {
    const Decoder *d = r.d;
    const int64_t width = d->head_width;
    const float scale = 1.0f / sqrtf((float)width);
    FOR_ROWS(r, row) {
        for (int64_t head = 0; head < d->n_heads; head++) {
            float *query = d->query + (row * d->n_heads + head) * width;
            if (layer->query_norm.weight) norm(layer->query_norm, 1, d->epsilon, query, width, query);
            if (d->rotation) rotate(d->rotation, first + row, width, query);
            for (int64_t i = 0; i < width; i++) query[i] *= scale;
        }
        for (int64_t head = 0; head < d->n_key_heads; head++) {
            float *key = d->key + (row * d->n_key_heads + head) * width;
            if (layer->key_norm.weight) norm(layer->key_norm, 1, d->epsilon, key, width, key);
            if (d->rotation) rotate(d->rotation, first + row, width, key);
            store(d, layer, head, first + row, key, d->value + (row * d->n_key_heads + head) * width);
        }
    }
    meet_rows(r);
}

static void feed_forward(Rows r, const Layer *layer) {
    const Decoder *d = r.d;
    prepare(r, d->is_pre_norm ? &layer->feed_forward_norm : NULL, 0, d->stream, d->width);
    if (layer->gate.quants) product(r, &layer->gate, 0, d->gate);
    product(r, &layer->up, 0, d->hidden);
    meet(r.w);
    FOR_ROWS(r, row) {
        float *hidden = d->hidden + row * d->feed_forward_width;
        activate(d->activation, d->gate + row * d->feed_forward_width, d->feed_forward_width, hidden);
        quantize(hidden, d->feed_forward_width, row, d->input);
    }
    meet_rows(r);
    product(r, &layer->down, 1, d->stream);
    meet(r.w);
    if (!d->is_pre_norm) norm_stream(r, layer->feed_forward_norm);
}

/* `kept` is the first row that goes on after keys and values are written. */
static void attention(Rows r, const Layer *layer, int64_t first, int64_t kept) {
    const Decoder *d = r.d;
    prepare(r, d->is_pre_norm ? &layer->attention_norm : NULL, 0, d->stream, d->width);
    product(r, &layer->query, 0, d->query);
    product(r, &layer->key, 0, d->key);
    product(r, &layer->value, 0, d->value);
    meet(r.w);
    place_heads(r, layer, first);
    r.start = kept;
    attend(d, layer, r.start, r.stop, first, r.w);
    prepare(r, NULL, 1, d->attended, d->n_heads * d->head_width);
    product(r, &layer->output, 1, d->stream);
    meet(r.w);
    if (!d->is_pre_norm) norm_stream(r, layer->attention_norm);
}

static void outputs(Rows r, const Batch *b) {
    const Decoder *d = r.d;
    prepare(r, &d->final_norm, 0, d->stream, d->width);
    if (d->project_out.quants) {
        product(r, &d->project_out, 0, d->hidden);
        meet(r.w);
        prepare(r, NULL, 1, d->hidden, d->project_out.n_out);
    }
    /* Rows of logits are counted from the first output. */
    product(r, &d->head, 0, b->logits - r.start * d->head.n_out);
    meet(r.w);
}

static void compute_batch(void *argument, Worker *worker) {
    const Batch *b = argument;
    const Decoder *d = b->decoder;
    Rows r = {d, 0, b->n_ids, worker};
    embed(r);
    for (int32_t i = 0; i < d->n_layers; i++) {
        const int64_t kept = i == d->n_layers - 1 ? b->n_ids - b->n_outputs : 0;
        attention(r, &d->layers[i], b->first, kept);
        r.start = kept;
        feed_forward(r, &d->layers[i]);
    }
    if (b->n_outputs) outputs(r, b);
}

/* What Python calls. */

_Static_assert((int)MAX_ROWS <= (int)MOST_ROWS, "the caller makes room for the scores of MOST_ROWS rows");

/* What the caller compares with its own: the structs' sizes, then of each format the inputs of a block and its bytes. */
void tinydispatch_sizes(int64_t *sizes) {
    static const int64_t types[] = {TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1,
                                    TYPE_Q8_0, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K};
    *sizes++ = sizeof(Decoder);
    *sizes++ = sizeof(Layer);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const Format format = format_of(types[i]);
        *sizes++ = format.inputs;
        *sizes++ = format.quant_bytes;
        *sizes++ = format.scale_bytes;
    }
}

void tinydispatch_pack(int64_t type, const uint8_t *rows, int64_t n_in, int64_t n_out, int64_t parted,
                       uint8_t *quants, uint8_t *scales) {
    pack(type, rows, n_in, n_out, parted, quants, scales);
}

void *tinydispatch_start_threads(int32_t n_threads, int32_t n_layers) {
    return start_pool(n_threads, n_layers * LAYER_PHASES + OTHER_PHASES);
}

void tinydispatch_stop_threads(void *pool) { stop_pool(pool); }

/* Compute `n_ids` ids, whose rows the caller has written, at positions from `first`; logits (n_outputs, vocabulary) of the
 * last `n_outputs` of them. */
void tinydispatch_compute(const Decoder *decoder, int64_t n_ids, int64_t first, int64_t n_outputs, float *logits) {
    Batch batch = {decoder, n_ids, first, n_outputs, logits};
    run(decoder->pool, compute_batch, &batch);
}
