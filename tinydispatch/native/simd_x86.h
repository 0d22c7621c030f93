/* x86-64 with AVX-512 VNNI, or with AVX2, FMA and F16C. Included by simd.h. */
#pragma once

#include <immintrin.h>

INLINE float half(uint16_t bits) { return _cvtsh_ss(bits); }

INLINE void pause_thread(void) { _mm_pause(); }

#if defined(__AVX512VNNI__)

enum { LANES = 16, STEP = 4, MAX_ROWS = 8 };
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

/* The instruction takes one factor without a sign: weights are stored with 128 added. */
enum { WEIGHT_FLIP = 0x80 };
INLINE Ints initial_sum(int32_t sum) { return (Ints){0} - 128 * sum; }

INLINE Ints add_products(Ints sums, Bytes weights, const int8_t *four) {
    int32_t x;
    memcpy(&x, four, 4);
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, weights, _mm512_set1_epi32(x));
}

/* Weights of up to six bits are stored as they are. */
INLINE Ints add_unsigned_products(Ints sums, Bytes weights, const int8_t *four) {
    return add_products(sums, weights, four);
}

INLINE void store_bytes(int8_t *p, Ints x) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)x)); }

INLINE Floats load_small(const int8_t *p) {
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

INLINE Bytes bits(Bytes x, const int shift, const char mask) {
    x = shift < 0 ? _mm512_slli_epi16(x, -shift) : _mm512_srli_epi16(x, shift);
    return _mm512_and_si512(x, _mm512_set1_epi8(mask));
}

INLINE Bytes either(Bytes x, Bytes y) { return _mm512_or_si512(x, y); }

/* The fifth bits of the STEP inputs from `input` on, where they belong, from `put_fifth_bits`. */
INLINE Bytes fifth_bits(const uint8_t *p, const int input) { return bits(load_bytes(p), input / 4 - 4, 16); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

enum { LANES = 8, STEP = 4, MAX_ROWS = 4 };
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

/* Weights of up to six bits are such factors already; two products stay below 2^14. */
INLINE Ints add_unsigned_products(Ints sums, Bytes weights, const int8_t *four) {
    int32_t x;
    memcpy(&x, four, 4);
    __m256i pairs = _mm256_maddubs_epi16(weights, _mm256_set1_epi32(x));
    return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE void store_bytes(int8_t *p, Ints x) {
    for (int lane = 0; lane < LANES; lane++) p[lane] = (int8_t)x[lane];
}

INLINE Floats load_small(const int8_t *p) {
    return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

INLINE Bytes bits(Bytes x, const int shift, const char mask) {
    x = shift < 0 ? _mm256_slli_epi16(x, -shift) : _mm256_srli_epi16(x, shift);
    return _mm256_and_si256(x, _mm256_set1_epi8(mask));
}

INLINE Bytes either(Bytes x, Bytes y) { return _mm256_or_si256(x, y); }

/* The fifth bits of the STEP inputs from `input` on, where they belong, from `put_fifth_bits`. */
INLINE Bytes fifth_bits(const uint8_t *p, const int input) { return bits(load_bytes(p), input / 4 - 4, 16); }

#else
#error "needs AVX-512 VNNI, or AVX2 with FMA and F16C"
#endif
