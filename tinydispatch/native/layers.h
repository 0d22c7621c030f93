/* What a decoder does to one row at a time: norm it, turn it by its position, keep it, activate it. */
#pragma once

#include <math.h>

#include "decoder.h"
#include "simd.h"

/* Layer norm, or root-mean-square norm without a bias; `out` may be `x`. */
static void norm(Norm norm, int is_rms, float epsilon, const float *x, int64_t n, float *out) {
    Floats sum = {0}, squares = {0};
    float mean = 0;
    if (!is_rms) {
        for (int64_t i = 0; i < n; i += LANES) sum += load_floats(x + i);
        mean = total(sum) / (float)n;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        const Floats centred = load_floats(x + i) - mean;
        squares += centred * centred;
    }
    const float factor = 1.0f / sqrtf(total(squares) / (float)n + epsilon);
    for (int64_t i = 0; i < n; i += LANES) {
        Floats y = (load_floats(x + i) - mean) * factor * load_floats(norm.weight + i);
        if (norm.bias) y += load_floats(norm.bias + i);
        store_floats(out + i, y);
    }
}

/* Turn a head by its position, its first half against its second. */
static void rotate(const float *rotation, int64_t position, int64_t width, float *x) {
    const float *cosines = rotation + position * width, *sines = cosines + width / 2;
    for (int64_t i = 0; i < width / 2; i++) {
        const float first = x[i], second = x[i + width / 2];
        x[i] = first * cosines[i] - second * sines[i];
        x[i + width / 2] = first * sines[i] + second * cosines[i];
    }
}

/* Keys and values of one head at a position of the cache. */
static void store(const Decoder *d, const Layer *layer, int64_t head, int64_t position, const float *key,
                  const float *value) {
    const int64_t width = d->head_width, start = head * d->n_cells * width;
    uint16_t *keys = layer->keys + start + position / KEY_BLOCK * width * KEY_BLOCK + position % KEY_BLOCK;
    uint16_t *values = layer->values + start + position * width;
    for (int64_t i = 0; i < width; i += LANES) {
        uint16_t halves[LANES];
        store_halves(halves, load_floats(key + i));
        for (int lane = 0; lane < LANES; lane++) keys[(i + lane) * KEY_BLOCK] = halves[lane];
        store_halves(values + i, load_floats(value + i));
    }
}

/* The hidden row, from `hidden` and, where the layer has one, `gate`. */
static void activate(int activation, const float *gate, int64_t n, float *hidden) {
    for (int64_t i = 0; i < n; i += LANES) {
        Floats x = load_floats(hidden + i);
        if (activation == ACTIVATION_SILU_GATED) {
            const Floats g = load_floats(gate + i);
            x *= g / (1.0f + exponential(-g));
        } else if (activation == ACTIVATION_RELU) {
            x = larger(x, (Floats){0});
        } else {
            for (int lane = 0; lane < LANES; lane++) x[lane] = 0.5f * x[lane] * (1.0f + erff(x[lane] * 0.70710678f));
        }
        store_floats(hidden + i, x);
    }
}
