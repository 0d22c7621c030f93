/* Attention over the cache, for a few queries of one head of keys at a time.
 *
 * Keys lie in blocks of KEY_BLOCK positions, one number of each side by side, so that scores of neighbouring keys are
 * computed in neighbouring lanes; values lie position after position, and a lane holds one number of a head. Each key
 * and value is widened to 32 bits once for all queries at hand.
 */
#pragma once

#include <math.h>

#include "decoder.h"
#include "threads.h"

/* Vectors of a block's keys; and of a value's numbers, that are summed side by side for MAX_ROWS queries, and at most.
 * For fewer queries more is taken side by side: a single sum would wait for itself at every step. */
enum { KEY_VECTORS = KEY_BLOCK / LANES, VALUE_VECTORS = KEY_VECTORS > 2 ? KEY_VECTORS : 2, MOST_VECTORS = 8 };

/* Scores of n queries with `n_blocks` blocks of keys; both are constants. Keys behind a query's own get -inf. */
INLINE void score_blocks(const Decoder *d, const uint16_t *keys, const float *const *queries, const int64_t *positions,
                         const int n, int64_t first, const int n_blocks, float *scores) {
    const int64_t width = d->head_width;
    const uint16_t *key = keys + first * width * KEY_BLOCK;
    Floats sums[MAX_ROWS][MAX_ROWS][KEY_VECTORS];
#pragma GCC unroll 8
    for (int b = 0; b < n_blocks; b++)
#pragma GCC unroll 8
        for (int q = 0; q < n; q++)
#pragma GCC unroll 4
            for (int v = 0; v < KEY_VECTORS; v++) sums[b][q][v] = (Floats){0};
    for (int64_t i = 0; i < width; i++, key += KEY_BLOCK)
#pragma GCC unroll 8
        for (int b = 0; b < n_blocks; b++)
#pragma GCC unroll 4
            for (int v = 0; v < KEY_VECTORS; v++) {
                const Floats numbers = load_halves(key + b * width * KEY_BLOCK + v * LANES);
#pragma GCC unroll 8
                for (int q = 0; q < n; q++) sums[b][q][v] += numbers * queries[q][i];
            }
#pragma GCC unroll 8
    for (int b = 0; b < n_blocks; b++)
#pragma GCC unroll 8
        for (int q = 0; q < n; q++) {
            float *place = scores + q * d->n_cells + (first + b) * KEY_BLOCK;
#pragma GCC unroll 4
            for (int v = 0; v < KEY_VECTORS; v++) store_floats(place + v * LANES, sums[b][q][v]);
            const int64_t n_seen = positions[q] + 1 - (first + b) * KEY_BLOCK;
            for (int64_t i = n_seen > 0 ? n_seen : 0; i < KEY_BLOCK; i++) place[i] = -INFINITY;
        }
}

/* Scores of n queries with all keys up to the last query's; n is a constant. */
INLINE void score(const Decoder *d, const uint16_t *keys, const float *const *queries, const int64_t *positions,
                  const int n, float *scores) {
    const int together = MAX_ROWS / n;
    const int64_t n_blocks = positions[n - 1] / KEY_BLOCK + 1;
    int64_t block = 0;
    for (; block + together <= n_blocks; block += together)
        score_blocks(d, keys, queries, positions, n, block, together, scores);
    for (; block < n_blocks; block++) score_blocks(d, keys, queries, positions, n, block, 1, scores);
}

/* Turn n scores into weights; returns what they add up to. */
static float weigh(float *scores, int64_t n) {
    Floats most = load_floats(scores), sum = {0};
    for (int64_t i = LANES; i < n; i += LANES) most = larger(most, load_floats(scores + i));
    const float top = largest(most);
    for (int64_t i = 0; i < n; i += LANES) {
        const Floats weights = exponential(load_floats(scores + i) - top);
        store_floats(scores + i, weights);
        sum += weights;
    }
    return total(sum);
}

/* Values weighted for n queries, `n_vectors` times LANES numbers of a head; both are constants. */
INLINE void mix(const Decoder *d, const uint16_t *values, int64_t n_keys, const float *scores, const float *totals,
                const int n, const int n_vectors, float *const *out) {
    Floats sums[MAX_ROWS][MOST_VECTORS];
#pragma GCC unroll 8
    for (int q = 0; q < n; q++)
#pragma GCC unroll 8
        for (int v = 0; v < n_vectors; v++) sums[q][v] = (Floats){0};
    for (int64_t key = 0; key < n_keys; key++, values += d->head_width) {
        Floats numbers[MOST_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < n_vectors; v++) numbers[v] = load_halves(values + v * LANES);
#pragma GCC unroll 8
        for (int q = 0; q < n; q++)
#pragma GCC unroll 8
            for (int v = 0; v < n_vectors; v++) sums[q][v] += numbers[v] * scores[q * d->n_cells + key];
    }
    for (int q = 0; q < n; q++)
        for (int v = 0; v < n_vectors; v++) store_floats(out[q] + v * LANES, sums[q][v] * (1.0f / totals[q]));
}

INLINE void attend_few(const Decoder *d, const Layer *layer, int64_t head, const float *const *queries,
                       const int64_t *positions, const int n, float *const *out, float *scores) {
    const int64_t width = d->head_width, n_keys = positions[n - 1] + 1;
    score(d, layer->keys + head * d->n_cells * width, queries, positions, n, scores);
    float totals[MAX_ROWS];
    const int64_t n_scores = (positions[n - 1] / KEY_BLOCK + 1) * KEY_BLOCK;
    for (int q = 0; q < n; q++) totals[q] = weigh(scores + q * d->n_cells, n_scores);
    const uint16_t *values = layer->values + head * d->n_cells * width;
    float *places[MAX_ROWS];
    const int most = VALUE_VECTORS * MAX_ROWS / n;
    for (int64_t i = 0, step; i < width; i += step) {
        const int64_t left = (width - i) / LANES;
        for (int q = 0; q < n; q++) places[q] = out[q] + i;
        if (most >= 8 && left >= 8) mix(d, values + i, n_keys, scores, totals, n, 8, places), step = 8 * LANES;
        else if (most >= 4 && left >= 4) mix(d, values + i, n_keys, scores, totals, n, 4, places), step = 4 * LANES;
        else if (left >= 2) mix(d, values + i, n_keys, scores, totals, n, 2, places), step = 2 * LANES;
        else mix(d, values + i, n_keys, scores, totals, n, 1, places), step = LANES;
    }
}

/* Attention for rows [start, n) at positions from `first`: `attended` from `query`, a few queries of one head a piece. */
static void attend(const Decoder *d, const Layer *layer, int64_t start, int64_t n, int64_t first, Worker *w) {
    const int64_t group = d->n_heads / d->n_key_heads, n_queries = (n - start) * group;
    const int64_t stride = d->n_heads * d->head_width, n_chunks = (n_queries + MAX_ROWS - 1) / MAX_ROWS;
    float *scores = d->scores + (int64_t)w->thread * MAX_ROWS * d->n_cells;
    FOR_PIECES(w, piece, n_chunks * d->n_key_heads) {
        const int64_t head = piece / n_chunks, stop = (piece % n_chunks + 1) * MAX_ROWS;
        int64_t i = piece % n_chunks * MAX_ROWS;
        const int64_t end = stop < n_queries ? stop : n_queries;
        while (i < end) {
            const float *queries[MAX_ROWS];
            float *out[MAX_ROWS];
            int64_t positions[MAX_ROWS];
            const int count = end - i >= MAX_ROWS ? MAX_ROWS : end - i >= 4 ? 4 : end - i >= 2 ? 2 : 1;
            for (int q = 0; q < count; q++) {
                const int64_t row = start + (i + q) / group;
                const int64_t place = row * stride + (head * group + (i + q) % group) * d->head_width;
                queries[q] = d->query + place, out[q] = d->attended + place, positions[q] = first + row;
            }
            if (count == MAX_ROWS) attend_few(d, layer, head, queries, positions, MAX_ROWS, out, scores);
            else if (count == 4) attend_few(d, layer, head, queries, positions, 4, out, scores);
            else if (count == 2) attend_few(d, layer, head, queries, positions, 2, out, scores);
            else attend_few(d, layer, head, queries, positions, 1, out, scores);
            i += count;
        }
    }
    leave(w, n_chunks * d->n_key_heads);
    meet(w);
}
