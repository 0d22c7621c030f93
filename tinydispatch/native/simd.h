/* What differs between processors, in a header for each kind, and what is computed from it.
 *
 * Each has vectors of LANES numbers (`Floats`, `Ints`), 16-bit floats, and sums of 8-bit products: `add_products` takes
 * STEP activations of a row and, as one `Bytes`, their weights for LANES outputs. Weights are stored with WEIGHT_FLIP's
 * bits turned, which `initial_sum` takes back; those of four bits are taken as they are. Sums for MAX_ROWS rows fit into
 * registers. `add_unsigned_products` is the same
 * for weights below 64, without flips; `fifth_bits` are added to four. `load_small` widens LANES small whole numbers; `bits` shifts to the right, or by a negative number to the left,
 * and keeps the mask's bits, which have to come from the same byte.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__aarch64__)
#include "simd_neon.h"
#elif defined(__x86_64__)
#include "simd_x86.h"
#else
#error "needs x86-64 or 64-bit ARM"
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
