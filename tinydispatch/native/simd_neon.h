/* 64-bit ARM, with the dot products of ARMv8.2 or without. Included by simd.h. */
#pragma once

#include <arm_neon.h>

enum { LANES = 4, STEP = 16, MAX_ROWS = 4 };
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef struct {
    int8x16_t fours[STEP / 4]; /* each: four weights of every lane */
} Bytes;

INLINE float half(uint16_t bits) {
    __fp16 x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* `yield` does nothing on most of these processors; this waits until what was begun is done. */
INLINE void pause_thread(void) { __asm__ volatile("isb"); }

INLINE Floats load_halves(const uint16_t *p) { return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }

INLINE void store_halves(uint16_t *p, Floats x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x))); }

INLINE Floats larger(Floats x, Floats y) { return (Floats)vmaxq_f32((float32x4_t)x, (float32x4_t)y); }

INLINE void store_bytes(int8_t *p, Ints x) {
    for (int lane = 0; lane < LANES; lane++) p[lane] = (int8_t)x[lane];
}

enum { WEIGHT_FLIP = 0 };
INLINE Ints initial_sum(int32_t sum) { return (Ints){0} + 0 * sum; }

INLINE Bytes load_bytes(const uint8_t *p) {
    const int8_t *from = (const int8_t *)p;
    return (Bytes){{vld1q_s8(from), vld1q_s8(from + 16), vld1q_s8(from + 32), vld1q_s8(from + 48)}};
}

INLINE Floats load_small(const int8_t *p) {
    return (Floats){(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
}

INLINE Bytes bits(Bytes x, const int shift, const char mask) {
#pragma GCC unroll 4
    for (int i = 0; i < STEP / 4; i++) {
        const uint8x16_t shifted = vshlq_u8(vreinterpretq_u8_s8(x.fours[i]), vdupq_n_s8((int8_t)-shift));
        x.fours[i] = vreinterpretq_s8_u8(vandq_u8(shifted, vdupq_n_u8((uint8_t)mask)));
    }
    return x;
}

INLINE Bytes either(Bytes x, Bytes y) {
#pragma GCC unroll 4
    for (int i = 0; i < STEP / 4; i++) x.fours[i] = vorrq_s8(x.fours[i], y.fours[i]);
    return x;
}

/* The fifth bits of the STEP inputs from `input` on, where they belong, from `put_fifth_bits`. */
INLINE Bytes fifth_bits(const uint8_t *p, const int input) {
    const uint8x16_t all = vld1q_u8(p);
    Bytes x;
#pragma GCC unroll 4
    for (int i = 0; i < STEP / 4; i++) {
        const uint8x16_t moved = vshlq_u8(all, vdupq_n_s8((int8_t)(4 - input / 4 - i)));
        x.fours[i] = vreinterpretq_s8_u8(vandq_u8(moved, vdupq_n_u8(16)));
    }
    return x;
}

#if defined(__ARM_FEATURE_DOTPROD)

INLINE Ints add_products(Ints sums, Bytes weights, const int8_t *step) {
    const int8x16_t x = vld1q_s8(step);
    int32x4_t y = (int32x4_t)sums;
    y = vdotq_laneq_s32(y, weights.fours[0], x, 0);
    y = vdotq_laneq_s32(y, weights.fours[1], x, 1);
    y = vdotq_laneq_s32(y, weights.fours[2], x, 2);
    y = vdotq_laneq_s32(y, weights.fours[3], x, 3);
    return (Ints)y;
}

#else

/* A lane's four products, added in 16 bits by twos, which stay below 2^15, then in 32. */
INLINE Ints add_products(Ints sums, Bytes weights, const int8_t *step) {
    int32x4_t y = (int32x4_t)sums;
#pragma GCC unroll 4
    for (int i = 0; i < STEP / 4; i++) {
        int32_t four;
        memcpy(&four, step + 4 * i, 4);
        const int8x16_t w = weights.fours[i], x = vreinterpretq_s8_s32(vdupq_n_s32(four));
        y = vpadalq_s16(y, vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)));
    }
    return (Ints)y;
}

#endif

/* Weights of up to six bits have room for a sign. */
INLINE Ints add_unsigned_products(Ints sums, Bytes weights, const int8_t *step) {
    return add_products(sums, weights, step);
}
