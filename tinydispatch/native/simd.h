/* What differs between processors: vectors of LANES numbers, 16-bit floats, and sums of four 8-bit products. */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512VNNI__)

enum { LANES = 16, MAX_ROWS = 8 };
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef __m512i Bytes;

INLINE Floats load_halves(const uint16_t *p) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE void store_halves(uint16_t *p, Floats x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}

INLINE Floats larger(Floats x, Floats y) { return (Floats)_mm512_max_ps((__m512)x, (__m512)y); }

INLINE Bytes load_bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }

/* The instruction takes one factor without a sign: weights are stored with 128 added, which `initial_sum` takes back. */
enum { WEIGHT_FLIP = 0x80 };
INLINE Ints initial_sum(int32_t sum) { return (Ints){0} - 128 * sum; }

INLINE Ints add_products(Ints sums, Bytes weights, const int8_t *four) {
    int32_t x;
    memcpy(&x, four, 4);
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, weights, _mm512_set1_epi32(x));
}

INLINE void store_bytes(int8_t *p, Ints x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)x)); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

enum { LANES = 8, MAX_ROWS = 4 };
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef __m256i Bytes;

INLINE Floats load_halves(const uint16_t *p) { return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }

INLINE void store_halves(uint16_t *p, Floats x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

INLINE Floats larger(Floats x, Floats y) { return (Floats)_mm256_max_ps((__m256)x, (__m256)y); }

INLINE Bytes load_bytes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

enum { WEIGHT_FLIP = 0 };
INLINE Ints initial_sum(int32_t sum) { return (Ints){0} + 0 * sum; }

/* One factor without a sign here, too: |x| · (w with the sign of x). Two such products stay below 2^15. */
INLINE Ints add_products(Ints sums, Bytes weights, const int8_t *four) {
    int32_t x;
    memcpy(&x, four, 4);
    __m256i each = _mm256_set1_epi32(x);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(each), _mm256_sign_epi8(weights, each));
    return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE void store_bytes(int8_t *p, Ints x) {
    for (int lane = 0; lane < LANES; lane++) p[lane] = (int8_t)x[lane];
}

#else
#error "needs AVX-512 VNNI, or AVX2 with FMA and F16C"
#endif

INLINE Floats load_floats(const float *p) {
    Floats x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store_floats(float *p, Floats x) { memcpy(p, &x, sizeof x); }

INLINE float total(Floats x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

INLINE float largest(Floats x) {
    float most = x[0];
    for (int lane = 1; lane < LANES; lane++) most = x[lane] > most ? x[lane] : most;
    return most;
}

/* To the nearest integer, ties to even, for numbers below 2^22. */
INLINE Floats rounded(Floats x) {
    const Floats shift = (Floats){0} + 12582912.0f;
    return (x + shift) - shift;
}

/* e^x within two units in the last place; 0 below -87, as for minus infinity. */
INLINE Floats exponential(Floats x) {
    Floats clamped = larger(x, (Floats){0} - 87.0f);
    Floats n = rounded(clamped * 1.44269504f);
    Floats r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    Floats result = p * (Floats)power;
    return (Floats)((Ints)result & (x > -87.0f));
}
