/* Matrices of 4 to 8 bits times rows in 8 bits.
 *
 * LANES outputs are computed side by side, for up to MAX_ROWS rows at once, so that no lane waits for a sum across
 * lanes and each weight is read once for all the rows. Every number is added up in the same order however many rows
 * there are: an id's result does not depend on the batch that it came in.
 */
#pragma once

#include "pack.h"

/* Round a row to 8 bits, each block by its own largest number. */
static void quantize(const float *x, int64_t n, int64_t row, Quantized into) {
    enum { HALF_VECTORS = BLOCK / 2 / LANES };
    for (int64_t block = row * n / BLOCK; block < (row + 1) * n / BLOCK; block++, x += BLOCK) {
        Floats parts[2][HALF_VECTORS], most = {0};
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < HALF_VECTORS; i++) {
                parts[half][i] = load_floats(x + (half * HALF_VECTORS + i) * LANES);
                most = larger(most, larger(parts[half][i], -parts[half][i]));
            }
        const float scale = largest(most) / 127.0f, factor = scale > 0 ? 1.0f / scale : 0.0f;
        into.scales[block] = scale;
        for (int half = 0; half < 2; half++) {
            Ints sums = {0};
            for (int i = 0; i < HALF_VECTORS; i++) {
                const Ints numbers = __builtin_convertvector(rounded(parts[half][i] * factor), Ints);
                sums += numbers;
                store_bytes(into.quants + block * BLOCK + (half * HALF_VECTORS + i) * LANES, numbers);
            }
            into.sums[2 * block + half] = 0;
            for (int lane = 0; lane < LANES; lane++) into.sums[2 * block + half] += sums[lane];
        }
    }
}

/* What one tile and n rows have in common while they are multiplied: pointers that move along the inputs. */
typedef struct {
    const uint8_t *weights, *scales;
    const int8_t *quants;
    const float *row_scales;
    const int32_t *row_sums;
    int64_t n_in;
} Cursor;

INLINE void fetch(const uint8_t *from, int n_bytes) {
#pragma GCC unroll 16
    for (int i = 0; i < n_bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

INLINE void add_q8_0(Cursor c, const int n, Floats *sums) {
    Ints products[MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        const int32_t *halves = c.row_sums + r * c.n_in / (BLOCK / 2);
        products[r] = initial_sum(halves[0] + halves[1]);
    }
#pragma GCC unroll 8
    for (int step = 0; step < BLOCK; step += STEP) {
        const Bytes w = load_bytes(c.weights + step * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) products[r] = add_products(products[r], w, c.quants + r * c.n_in + step);
    }
    const Floats scale = load_halves((const uint16_t *)c.scales);
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        sums[r] += __builtin_convertvector(products[r], Floats) * (scale * c.row_scales[r * c.n_in / BLOCK]);
}

/* Products of BLOCK weights without a sign, of four bits and maybe a fifth, with those inputs of n rows. */
INLINE void add_block(const uint8_t *weights, const uint8_t *fifths, const int8_t *quants, int64_t n_in, const int n,
                      Ints *products) {
#pragma GCC unroll 8
    for (int step = 0; step < BLOCK / 2; step += STEP) {
        const Bytes w = load_bytes(weights + step * LANES);
        Bytes low = bits(w, 0, 15), high = bits(w, 4, 15);
        if (fifths) low = either(low, fifth_bits(fifths, step)), high = either(high, fifth_bits(fifths, step + BLOCK / 2));
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            const int8_t *x = quants + r * n_in + step;
            products[r] = add_unsigned_products(add_unsigned_products(products[r], low, x), high, x + BLOCK / 2);
        }
    }
}

INLINE void add_small(Cursor c, const int type, const int n, Floats *sums) {
    const int zero = has_minimum(type) ? 0 : has_fifth_bit(type) ? 16 : 8;
    Ints products[MAX_ROWS];
    int32_t row_sums[MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        const int32_t *halves = c.row_sums + r * c.n_in / (BLOCK / 2);
        row_sums[r] = halves[0] + halves[1];
        products[r] = (Ints){0} - zero * row_sums[r];
    }
    add_block(c.weights, has_fifth_bit(type) ? c.weights + BLOCK / 2 * LANES : NULL, c.quants, c.n_in, n, products);
    const Floats scale = load_halves((const uint16_t *)c.scales);
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        const float row_scale = c.row_scales[r * c.n_in / BLOCK];
        sums[r] += __builtin_convertvector(products[r], Floats) * (scale * row_scale);
        if (has_minimum(type))
            sums[r] += load_halves((const uint16_t *)c.scales + LANES) * (row_scale * (float)row_sums[r]);
    }
}

INLINE void add_q4_k(Cursor c, const int type, const int n, Floats *sums) {
    const Floats scales = load_halves((const uint16_t *)c.scales);
    const Floats minima = load_halves((const uint16_t *)c.scales + LANES);
    for (int part = 0; part < SUPER_BLOCK / BLOCK; part++) {
        const uint8_t *fifths = c.weights + (SUPER_BLOCK / 2 + 4 * part) * LANES;
        Ints products[MAX_ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) products[r] = (Ints){0};
        add_block(c.weights + part * BLOCK / 2 * LANES, has_fifth_bit(type) ? fifths : NULL, c.quants + part * BLOCK,
                  c.n_in, n, products);
        const Floats scale = scales * load_small((const int8_t *)c.scales + (4 + 2 * part) * LANES);
        const Floats minimum = minima * load_small((const int8_t *)c.scales + (5 + 2 * part) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            const float row_scale = c.row_scales[r * c.n_in / BLOCK + part];
            const int32_t *halves = c.row_sums + (r * c.n_in / BLOCK + part) * 2;
            sums[r] += __builtin_convertvector(products[r], Floats) * (scale * row_scale);
            sums[r] -= minimum * (row_scale * (float)(halves[0] + halves[1]));
        }
    }
}

/* One part of 16 inputs among four. */
INLINE void add_q6_k_part(Cursor c, const int n, const int part, Floats scales, Floats *sums) {
    Ints products[MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) products[r] = (Ints){0} - 32 * c.row_sums[r * c.n_in / 16 + part];
#pragma GCC unroll 8
    for (int step = 0; step < 16; step += STEP) {
        const Bytes low = load_bytes(c.weights + (part / 2 * 16 + step) * LANES);
        const Bytes high = load_bytes(c.weights + (32 + step) * LANES);
        const Bytes w = either(bits(low, part % 2 * 4, 15), bits(high, 2 * part - 4, 48));
#pragma GCC unroll 8
        for (int r = 0; r < n; r++)
            products[r] = add_unsigned_products(products[r], w, c.quants + r * c.n_in + part * 16 + step);
    }
    const Floats scale = scales * load_small((const int8_t *)c.scales + part * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        sums[r] += __builtin_convertvector(products[r], Floats) * (scale * c.row_scales[r * c.n_in / BLOCK + part / 2]);
}

INLINE void add_q6_k(Cursor c, const int n, Floats *sums) {
    const Floats scales = load_halves((const uint16_t *)c.scales);
    c.scales += 2 * LANES;
    for (int inputs = 0; inputs < SUPER_BLOCK; inputs += 64) {
        add_q6_k_part(c, n, 0, scales, sums);
        add_q6_k_part(c, n, 1, scales, sums);
        add_q6_k_part(c, n, 2, scales, sums);
        add_q6_k_part(c, n, 3, scales, sums);
        c.weights += 48 * LANES, c.scales += 4 * LANES;
        c.quants += 64, c.row_scales += 2, c.row_sums += 4;
    }
}

/* One tile of outputs for n rows; n and the type are constants. The next tile is fetched meanwhile. */
INLINE void multiply_tile(const Matrix *m, const int type, int64_t tile, Quantized x, int64_t row, const int n,
                          int fetches, Floats *out) {
    const int inputs = format_of(type).inputs;
    const int quant_bytes = format_of(type).quant_bytes * LANES, scale_bytes = format_of(type).scale_bytes * LANES;
    const int64_t n_blocks = m->n_in / inputs, first = row * m->n_in;
    Cursor c = {m->quants + tile * n_blocks * quant_bytes, m->scales + tile * n_blocks * scale_bytes, x.quants + first,
                x.scales + first / BLOCK, x.sums + first / (BLOCK / 2), m->n_in};
    Floats sums[MAX_ROWS]; /* in registers; `out` is memory */
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) sums[r] = (Floats){0};
    for (int64_t block = 0; block < n_blocks; block++) {
        if (fetches) fetch(c.weights + n_blocks * quant_bytes, quant_bytes);
        if (type == TYPE_Q8_0) add_q8_0(c, n, sums);
        else if (type == TYPE_Q6_K) add_q6_k(c, n, sums);
        else if (inputs == SUPER_BLOCK) add_q4_k(c, type, n, sums);
        else add_small(c, type, n, sums);
        c.weights += quant_bytes, c.scales += scale_bytes, c.quants += inputs;
        c.row_scales += inputs / BLOCK, c.row_sums += inputs / (BLOCK / 2);
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

/* `out` = W x for rows [start, stop), or `out` += W x, by tiles [first, last). `out` has n_out numbers a row. */
INLINE void multiply_type(const Matrix *m, const int type, Quantized x, int64_t start, int64_t stop, int adds,
                          float *out, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; tile++) {
        Floats sums[MAX_ROWS];
        for (int64_t row = start, n; row < stop; row += n) {
            const int64_t left = stop - row;
            const int fetches = row == start;
            if (left >= MAX_ROWS) multiply_tile(m, type, tile, x, row, n = MAX_ROWS, fetches, sums);
            else if (left >= 4) multiply_tile(m, type, tile, x, row, n = 4, fetches, sums);
            else if (left >= 2) multiply_tile(m, type, tile, x, row, n = 2, fetches, sums);
            else multiply_tile(m, type, tile, x, row, n = 1, fetches, sums);
            finish_tile(m, tile, row, (int)n, adds, out, sums);
        }
    }
}

/* The same for one of `n_pieces` pieces of the matrix. */
static void multiply(const Matrix *m, Quantized x, int64_t start, int64_t stop, int adds, float *out, int64_t piece,
                     int64_t n_pieces) {
    const int64_t n_tiles = (m->n_out + LANES - 1) / LANES;
    const int64_t first = n_tiles * piece / n_pieces, last = n_tiles * (piece + 1) / n_pieces;
    switch (m->type) {
    case TYPE_Q4_0: multiply_type(m, TYPE_Q4_0, x, start, stop, adds, out, first, last); break;
    case TYPE_Q4_1: multiply_type(m, TYPE_Q4_1, x, start, stop, adds, out, first, last); break;
    case TYPE_Q5_0: multiply_type(m, TYPE_Q5_0, x, start, stop, adds, out, first, last); break;
    case TYPE_Q5_1: multiply_type(m, TYPE_Q5_1, x, start, stop, adds, out, first, last); break;
    case TYPE_Q8_0: multiply_type(m, TYPE_Q8_0, x, start, stop, adds, out, first, last); break;
    case TYPE_Q4_K: multiply_type(m, TYPE_Q4_K, x, start, stop, adds, out, first, last); break;
    case TYPE_Q5_K: multiply_type(m, TYPE_Q5_K, x, start, stop, adds, out, first, last); break;
    case TYPE_Q6_K: multiply_type(m, TYPE_Q6_K, x, start, stop, adds, out, first, last); break;
    }
}
