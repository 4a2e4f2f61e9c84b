// Attention of one position over its sequence, for the query heads that share a key head.
#pragma once

#include "cache.h"

namespace tacit {

constexpr int QUERIES = 4;  // query heads that share a pass over keys and values

// scores[g][l] = q[g] . k[l] for l < length; scores is (GROUP, ld) with ld a multiple of LANES, and -inf from length on.
template <int GROUP>
void scores(const Sequence& sequence, int length, size_t keys, int width, const float* q, float* out, int ld) {
    for (int start = 0; start < length; start += LANES) {
        const float* block = sequence.page(start) + keys + static_cast<size_t>(start % PAGE) * width;
        vec total[GROUP] = {};
        for (int d = 0; d < width; d++) {
            vec k = load(block + static_cast<size_t>(d) * LANES);
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; g++) total[g] += q[g * width + d] * k;
        }
        for (int g = 0; g < GROUP; g++) store(out + g * ld + start, total[g]);
    }
    for (int g = 0; g < GROUP; g++)
        for (int l = length; l < ld; l++) out[g * ld + l] = -INFINITY;
}

// weights = exp(scores - max), not yet divided by their sum, which is returned.
inline float soften(float* weights, int ld) {
    vec most = load(weights);
    for (int l = LANES; l < ld; l += LANES) {
        vec s = load(weights + l);
        most = s > most ? s : most;
    }
    vec top = splat(largest(most)), total{};
    for (int l = 0; l < ld; l += LANES) {
        vec w = exponential(load(weights + l) - top);
        store(weights + l, w);
        total += w;
    }
    return sum(total);
}

// out[g] (width,) = sum over l of weights[g][l] v[l] / totals[g]; VECTORS vectors of the head at a time, and several positions, so that sums of
// narrow heads do not wait for each other.
template <int GROUP, int VECTORS>
void mix(const Sequence& sequence, int length, size_t values, int padded, int first, const float* weights, int ld, const float* totals, float* out, int width) {
    constexpr int CHAINS = GROUP * VECTORS >= 4 ? 1 : 4 / (GROUP * VECTORS);
    vec total[CHAINS][GROUP][VECTORS] = {};
    for (int start = 0; start < length; start += PAGE) {
        const float* v = sequence.page(start) + values + first;
        int count = length - start < PAGE ? length - start : PAGE;
        for (int l = 0; l < count; l += CHAINS) {
#pragma GCC unroll 4
            for (int c = 0; c < CHAINS; c++) {
                if (l + c >= count) break;
#pragma GCC unroll 4
                for (int g = 0; g < GROUP; g++)
#pragma GCC unroll 4
                    for (int j = 0; j < VECTORS; j++)
                        total[c][g][j] += weights[g * ld + start + l + c] * load(v + static_cast<size_t>(l + c) * padded + j * LANES);
            }
        }
    }
    for (int g = 0; g < GROUP; g++) {
        float share = 1.0f / totals[g];
        for (int j = 0; j < VECTORS; j++) {
            vec whole = total[0][g][j];
            for (int c = 1; c < CHAINS; c++) whole += total[c][g][j];
            whole *= share;
            int place = first + j * LANES, count = width - place < LANES ? width - place : LANES;
            memcpy(out + g * width + place, &whole, count * sizeof(float));
        }
    }
}

// out (GROUP, width) for queries q (GROUP, width), already scaled; `scratch` holds GROUP * round_up(length, LANES) numbers.
template <int GROUP>
void attend(const Sequence& sequence, int length, PageShape shape, int layer, int head, const float* q, float* scratch, float* out) {
    int ld = round_up(length, LANES), padded = shape.padded();
    scores<GROUP>(sequence, length, shape.keys(layer, head), shape.width, q, scratch, ld);
    float totals[GROUP];
    for (int g = 0; g < GROUP; g++) totals[g] = soften(scratch + g * ld, ld);
    size_t values = shape.values(layer, head);
    int first = 0;
    for (; first + 4 * LANES <= padded; first += 4 * LANES) mix<GROUP, 4>(sequence, length, values, padded, first, scratch, ld, totals, out, shape.width);
    for (; first + 2 * LANES <= padded; first += 2 * LANES) mix<GROUP, 2>(sequence, length, values, padded, first, scratch, ld, totals, out, shape.width);
    for (; first < padded; first += LANES) mix<GROUP, 1>(sequence, length, values, padded, first, scratch, ld, totals, out, shape.width);
}

// The same for any number of query heads.
inline void attend(int group, const Sequence& sequence, int length, PageShape shape, int layer, int head, const float* q, float* scratch, float* out) {
    for (; group >= QUERIES; group -= QUERIES, q += QUERIES * shape.width, out += QUERIES * shape.width)
        attend<QUERIES>(sequence, length, shape, layer, head, q, scratch, out);
    if (group == 3) attend<3>(sequence, length, shape, layer, head, q, scratch, out);
    if (group == 2) attend<2>(sequence, length, shape, layer, head, q, scratch, out);
    if (group == 1) attend<1>(sequence, length, shape, layer, head, q, scratch, out);
}

}  // namespace tacit
