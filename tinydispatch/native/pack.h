/* Matrices as product.h multiplies by them, from rows of a GGUF file.
 *
 * LANES rows are a tile. Of a tile, four inputs of each row lie together, then the next four. What the last
 * tile has no rows for stays zero, scales included.
 */
#pragma once

#include "decoder.h"
#include "simd.h"

/* A row's block: how many inputs it holds, its bytes in the file, and those of its numbers and scales here. */
typedef struct {
    int inputs, file_bytes, quant_bytes, scale_bytes;
} Format;

INLINE Format format_of(int64_t type) {
    return type == TYPE_Q4_0   ? (Format){BLOCK, 18, 16, 2}
           : type == TYPE_Q4_1 ? (Format){BLOCK, 20, 16, 2 + 2}
           : type == TYPE_Q5_0 ? (Format){BLOCK, 22, 20, 2}
           : type == TYPE_Q5_1 ? (Format){BLOCK, 24, 20, 2 + 2}
           : type == TYPE_Q8_0 ? (Format){BLOCK, 34, 32, 2}
           : type == TYPE_Q4_K ? (Format){SUPER_BLOCK, 144, 128, 2 + 2 + 8 + 8}
           : type == TYPE_Q5_K ? (Format){SUPER_BLOCK, 176, 160, 2 + 2 + 8 + 8}
                               : (Format){SUPER_BLOCK, 210, 192, 2 + 16};
}

/* Four bytes at once, of which each is one input's. */
INLINE uint32_t load_four(const uint8_t *p) {
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}

/* Where four inputs' weights lie, from a multiple of four on. */
INLINE uint8_t *place(uint8_t *quants, int64_t input, int64_t lane) { return quants + (input / 4 * LANES + lane) * 4; }

INLINE void put_four(uint8_t *p, uint32_t x) { memcpy(p, &x, 4); }

/* A byte, four times. */
INLINE uint32_t four_of(uint8_t x) { return x * 0x01010101u; }

/* Q8_0. Quants: the numbers. Scales: 16-bit floats, one for each row. */
static void pack_q8_0(const uint8_t *block, int64_t lane, uint8_t *quants, uint8_t *scales) {
    memcpy(scales + 2 * lane, block, 2);
    for (int i = 0; i < BLOCK; i += 4)
        put_four(place(quants, i, lane), load_four(block + 2 + i) ^ four_of(WEIGHT_FLIP));
}

INLINE int has_minimum(int64_t type) { return type == TYPE_Q4_1 || type == TYPE_Q5_1; }

INLINE int has_fifth_bit(int64_t type) { return type == TYPE_Q5_0 || type == TYPE_Q5_1 || type == TYPE_Q5_K; }

/* The fifth bits of 32 weights of a row, from a byte for each of which one bit counts: a byte here is that of four
 * weights apart, its bit their number. */
INLINE void put_fifth_bits(const uint8_t *each, int bit, int64_t lane, uint8_t *to) {
    uint8_t bytes[4] = {0};
    for (int i = 0; i < BLOCK; i++) bytes[i % 4] |= (uint8_t)((each[i] >> bit & 1) << i / 4);
    memcpy(place(to, 0, lane), bytes, 4);
}

/* Q4_0 to Q5_1. Quants: the first 16 inputs in the low halves of bytes, the others in the high ones; then the fifth bits.
 * Scales: 16-bit floats for the scales, then for the minima. */
static void pack_small(int64_t type, const uint8_t *block, int64_t lane, uint8_t *quants, uint8_t *scales) {
    memcpy(scales + 2 * lane, block, 2), block += 2;
    if (has_minimum(type)) memcpy(scales + 2 * LANES + 2 * lane, block, 2), block += 2;
    if (has_fifth_bit(type)) {
        uint8_t each[BLOCK];
        for (int i = 0; i < BLOCK; i++) each[i] = block[i / 8] >> i % 8;
        put_fifth_bits(each, 0, lane, quants + BLOCK / 2 * LANES), block += 4;
    }
    for (int i = 0; i < BLOCK / 2; i += 4) put_four(place(quants, i, lane), load_four(block + i));
}

/* Q4_K and Q5_K. Quants: of each 32 inputs the first 16 in the low halves of bytes, the others in the high ones; then
 * the fifth bits of each 32. Scales: 16-bit floats for all scales and all minima, then for each 32 inputs a scale and a
 * minimum of each row. */
static void pack_q4_k(int64_t type, const uint8_t *block, int64_t lane, uint8_t *quants, uint8_t *scales) {
    const uint8_t *packed = block + 4, *fifths = block + 16, *numbers = fifths + (has_fifth_bit(type) ? BLOCK : 0);
    memcpy(scales + 2 * lane, block, 2);
    memcpy(scales + 2 * LANES + 2 * lane, block + 2, 2);
    for (int part = 0; part < SUPER_BLOCK / BLOCK; part++) {
        const uint8_t low = packed[part % 4], high = packed[part % 4 + 4], rest = packed[part % 4 + 8];
        const uint8_t scale = part < 4 ? low & 63 : (rest & 15) | (low >> 6) << 4;
        const uint8_t minimum = part < 4 ? high & 63 : rest >> 4 | (high >> 6) << 4;
        scales[(4 + 2 * part) * LANES + lane] = scale;
        scales[(5 + 2 * part) * LANES + lane] = minimum;
        const uint8_t *from = numbers + part / 2 * BLOCK;
        uint8_t *to = quants + part * BLOCK / 2 * LANES;
        for (int i = 0; i < BLOCK / 2; i += 4) {
            const uint32_t one = load_four(from + i) >> part % 2 * 4 & four_of(15);
            const uint32_t other = load_four(from + i + BLOCK / 2) >> part % 2 * 4 & four_of(15);
            put_four(place(to, i, lane), one | other << 4);
        }
        if (has_fifth_bit(type)) put_fifth_bits(fifths, part, lane, quants + (SUPER_BLOCK / 2 + 4 * part) * LANES);
    }
}

/* Q6_K. Quants: of each 64 inputs four parts of 16; the low halves of two parts share bytes, and the upper two bits of all
 * four. Scales: a 16-bit float for all, then for each 16 inputs a scale of each row. */
static void pack_q6_k(const uint8_t *block, int64_t lane, uint8_t *quants, uint8_t *scales) {
    const uint8_t *low = block, *high = block + 128, *packed = block + 192;
    memcpy(scales + 2 * lane, block + 208, 2);
    for (int part = 0; part < SUPER_BLOCK / 16; part++) scales[(2 + part) * LANES + lane] = packed[part];
    for (int i = 0; i < SUPER_BLOCK; i += 4) {
        const int half = i / 128, quarter = i % 128 / 32, j = i % 32, part = i % 64 / 16;
        const uint32_t four = load_four(low + half * 64 + quarter % 2 * 32 + j) >> quarter / 2 * 4 & four_of(15);
        const uint32_t two = load_four(high + half * 32 + j) >> quarter * 2 & four_of(3);
        uint8_t *to = place(quants + i / 64 * 48 * LANES, i % 16, lane);
        uint8_t *lows = to + part / 2 * 16 * LANES, *highs = to + 32 * LANES;
        put_four(lows, part % 2 ? load_four(lows) | four << 4 : four);
        put_four(highs, part ? load_four(highs) | two << 2 * part : two);
    }
}

/* Where a row comes from: of each `parted` rows those of even number are taken first, then the others; 0 takes all as
 * they are. */
INLINE int64_t source_row(int64_t row, int64_t parted) {
    if (!parted) return row;
    const int64_t i = row % parted, half = parted / 2;
    return row - i + (i < half ? 2 * i : 2 * (i - half) + 1);
}

/* A whole matrix. */
static void pack(int64_t type, const uint8_t *rows, int64_t n_in, int64_t n_out, int64_t parted, uint8_t *quants,
                 uint8_t *scales) {
    const Format format = format_of(type);
    const int64_t n_blocks = n_in / format.inputs;
    for (int64_t first = 0; first < n_out; first += LANES) {
        const int64_t n_lanes = n_out - first < LANES ? n_out - first : LANES;
        for (int64_t block = 0; block < n_blocks; block++) {
            for (int64_t lane = 0; lane < n_lanes; lane++) {
                const uint8_t *from = rows + (source_row(first + lane, parted) * n_blocks + block) * format.file_bytes;
                if (type == TYPE_Q8_0) pack_q8_0(from, lane, quants, scales);
                else if (type == TYPE_Q6_K) pack_q6_k(from, lane, quants, scales);
                else if (format.inputs == SUPER_BLOCK) pack_q4_k(type, from, lane, quants, scales);
                else pack_small(type, from, lane, quants, scales);
            }
            quants += format.quant_bytes * LANES, scales += format.scale_bytes * LANES;
        }
    }
}
