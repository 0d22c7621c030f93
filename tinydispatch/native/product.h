/* Matrices in 8 bits times rows in 8 bits.
 *
 * LANES outputs are computed side by side, for up to MAX_ROWS rows at once, so that no lane waits for a sum across
 * lanes and each weight is read once for all the rows. Every number is added up in the same order however many rows
 * there are: an id's result does not depend on the batch that it came in.
 */
#pragma once

#include "decoder.h"
#include "simd.h"

enum { ROW_BLOCK_BYTES = 34 }; /* in a GGUF file: a 16-bit scale and 32 numbers */

/* Lay out rows of a GGUF file's blocks as `Matrix` has them; what the last tile has no rows for stays zero. */
static void pack(const uint8_t *rows, int64_t n_in, int64_t n_out, uint8_t *quants, uint16_t *scales) {
    const int64_t n_blocks = n_in / BLOCK, row_bytes = n_blocks * ROW_BLOCK_BYTES;
    for (int64_t first = 0; first < n_out; first += LANES) {
        const int64_t n_lanes = n_out - first < LANES ? n_out - first : LANES;
        for (int64_t block = 0; block < n_blocks; block++, quants += BLOCK * LANES, scales += LANES) {
            for (int64_t lane = 0; lane < n_lanes; lane++) {
                const uint8_t *from = rows + (first + lane) * row_bytes + block * ROW_BLOCK_BYTES;
                memcpy(scales + lane, from, 2);
                for (int four = 0; four < BLOCK / 4; four++) {
                    uint32_t x;
                    memcpy(&x, from + 2 + 4 * four, 4);
                    x ^= WEIGHT_FLIP * 0x01010101u;
                    memcpy(quants + (four * LANES + lane) * 4, &x, 4);
                }
            }
        }
    }
}

/* Round a row to 8 bits, each block by its own largest number. */
static void quantize(const float *x, int64_t n, int64_t row, Quantized into) {
    const int64_t n_blocks = n / BLOCK;
    for (int64_t block = 0; block < n_blocks; block++, x += BLOCK) {
        Floats parts[BLOCK / LANES], most = {0};
        for (int i = 0; i < BLOCK / LANES; i++) {
            parts[i] = load_floats(x + i * LANES);
            most = larger(most, larger(parts[i], -parts[i]));
        }
        const float scale = largest(most) / 127.0f, factor = scale > 0 ? 1.0f / scale : 0.0f;
        Ints sum = {0};
        for (int i = 0; i < BLOCK / LANES; i++) {
            Ints numbers = __builtin_convertvector(rounded(parts[i] * factor), Ints);
            sum += numbers;
            store_bytes(into.quants + row * n + block * BLOCK + i * LANES, numbers);
        }
        int32_t whole = 0;
        for (int lane = 0; lane < LANES; lane++) whole += sum[lane];
        into.scales[row * n_blocks + block] = scale;
        into.sums[row * n_blocks + block] = whole;
    }
}

/* One tile of outputs for n rows; n is a constant wherever this is called. The next tile is fetched meanwhile. */
INLINE void multiply_tile(const Matrix *m, int64_t tile, Quantized x, int64_t row, const int n, int fetches,
                          Floats *out) {
    const int64_t n_blocks = m->n_in / BLOCK, tile_bytes = n_blocks * BLOCK * LANES;
    const uint8_t *weights = m->quants + tile * tile_bytes;
    const uint16_t *scales = m->scales + tile * n_blocks * LANES;
    const int8_t *quants = x.quants + row * m->n_in;
    const float *row_scales = x.scales + row * n_blocks;
    const int32_t *row_sums = x.sums + row * n_blocks;
    Floats sums[MAX_ROWS]; /* in registers; `out` is memory */
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) sums[r] = (Floats){0};
    for (int64_t block = 0; block < n_blocks; block++) {
        Ints products[MAX_ROWS];
        if (fetches)
#pragma GCC unroll 8
            for (int i = 0; i < BLOCK * LANES / 64; i++) __builtin_prefetch(weights + tile_bytes + 64 * i, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) products[r] = initial_sum(row_sums[r * n_blocks + block]);
#pragma GCC unroll 8
        for (int step = 0; step < BLOCK; step += STEP) {
            const Bytes w = load_bytes(weights + step * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < n; r++)
                products[r] = add_products(products[r], w, quants + r * m->n_in + block * BLOCK + step);
        }
        const Floats scale = load_halves(scales + block * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++)
            sums[r] += __builtin_convertvector(products[r], Floats) * (scale * row_scales[r * n_blocks + block]);
        weights += BLOCK * LANES;
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) out[r] = sums[r];
}

INLINE void finish_tile(const Matrix *m, int64_t tile, int64_t row, int n, int adds, float *out, const Floats *sums) {
    const int64_t first = tile * LANES, left = m->n_out - first;
    for (int r = 0; r < n; r++) {
        float *place = out + (row + r) * m->n_out + first;
        if (left >= LANES) {
            const Floats y = m->bias ? sums[r] + load_floats(m->bias + first) : sums[r];
            store_floats(place, adds ? y + load_floats(place) : y);
        } else {
            for (int64_t i = 0; i < left; i++) {
                const float y = m->bias ? sums[r][i] + m->bias[first + i] : sums[r][i];
                place[i] = adds ? y + place[i] : y;
            }
        }
    }
}

/* A thread's share of `out` = W x for rows [start, stop), or `out` += W x. `out` has n_out numbers a row. */
static void multiply(const Matrix *m, Quantized x, int64_t start, int64_t stop, int adds, float *out, int thread,
                     int n_threads) {
    const int64_t n_tiles = (m->n_out + LANES - 1) / LANES, last = n_tiles * (thread + 1) / n_threads;
    for (int64_t tile = n_tiles * thread / n_threads; tile < last; tile++) {
        Floats sums[MAX_ROWS];
        for (int64_t row = start, n; row < stop; row += n) {
            const int64_t left = stop - row;
            const int fetches = row == start;
            if (left >= MAX_ROWS) multiply_tile(m, tile, x, row, n = MAX_ROWS, fetches, sums);
            else if (left >= 4) multiply_tile(m, tile, x, row, n = 4, fetches, sums);
            else if (left >= 2) multiply_tile(m, tile, x, row, n = 2, fetches, sums);
            else multiply_tile(m, tile, x, row, n = 1, fetches, sums);
            finish_tile(m, tile, row, (int)n, adds, out, sums);
        }
    }
}
