// A weight matrix packed for products with a few rows at a time, in fp32 or bf16 with sums in fp32.
#pragma once

#include <algorithm>

#include "vector.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace tacit {

constexpr int PANEL = PANEL_VECTORS * LANES;  // columns of a panel
constexpr int BLOCK = 6;                      // rows of x that share a pass over a panel

inline uint16_t to_bf16(float x) {  // to the nearest, ties to even
    uint32_t b;
    memcpy(&b, &x, 4);
    return static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

inline float from_bf16(uint16_t h) {
    uint32_t b = static_cast<uint32_t>(h) << 16;
    float x;
    memcpy(&x, &b, 4);
    return x;
}

// Numbers as the model stores them.
struct Stored {
    const void* data = nullptr;
    bool bf16 = false;
    float operator[](size_t i) const { return bf16 ? from_bf16(static_cast<const uint16_t*>(data)[i]) : static_cast<const float*>(data)[i]; }
    explicit operator bool() const { return data != nullptr; }
};

// y[m] = W x[m] + b with W (columns, depth). Columns lie in panels of PANEL, in each of which the numbers that a step over the depth needs are
// neighbours; in bf16 a step takes two. The last panel has as many vectors as it needs, so y has `width` columns, of which the last may be idle: 0.
class Matrix {
public:
    int columns = 0, depth = 0, width = 0;

    void shape(int columns_, int depth_, bool bf16) {
        columns = columns_, depth = depth_, width = round_up(columns, LANES), bf16_ = bf16;
        size_t elements = static_cast<size_t>(width) * (bf16 ? round_up(depth, 2) : depth);
        bf16 ? halves_.reserve(elements) : floats_.reserve(elements);
        bias_.reserve(width);
    }

    size_t bytes() const { return floats_.size() * sizeof(float) + halves_.size() * sizeof(uint16_t); }

    // Columns [first, first + count) from `weight` (count, depth) and `bias` (count,), which may be missing.
    void pack(int first, int count, Stored weight, Stored bias) {
        for (int n = first; n < first + count; n++) {
            size_t source = static_cast<size_t>(n - first) * depth;
            int start = n / PANEL * PANEL, lanes = std::min(PANEL, width - start), lane = n - start;
            if (bf16_) {
                uint16_t* to = halves_ + static_cast<size_t>(start) * round_up(depth, 2) + 2 * lane;
                for (int k = 0; k < depth; k++) to[static_cast<size_t>(k / 2) * 2 * lanes + k % 2] = to_bf16(weight[source + k]);
            } else {
                float* to = floats_ + static_cast<size_t>(start) * depth + lane;
                for (int k = 0; k < depth; k++) to[static_cast<size_t>(k) * lanes] = weight[source + k];
            }
            bias_[n] = bias ? bias[n - first] : 0.0f;
        }
    }

    // x (rows, ldx) to y (rows, ldy), with ldx >= depth and ldy >= width; `pairs` is scratch, for x in bf16.
    void product(const float* x, int ldx, int rows, float* y, int ldy, Buffer<uint32_t>& pairs) const {
        int blocks = (rows + BLOCK - 1) / BLOCK, steps = bf16_ ? (depth + 1) / 2 : depth;
        if (bf16_) {
            pairs.reserve(static_cast<size_t>(rows) * steps);
            for (int m = 0; m < rows; m++) {
                const float* from = x + static_cast<size_t>(m) * ldx;
                auto to = reinterpret_cast<uint16_t*>(pairs + static_cast<size_t>(m) * steps);
                if (depth % 2) to[depth] = 0;
                for (int k = 0; k < depth; k++) to[k] = to_bf16(from[k]);
            }
        }
        for (int start = 0; start < width; start += PANEL) {
            int vectors = std::min(PANEL, width - start) / LANES;
            for (int b = 0; b < blocks; b++) {  // blocks of as equal size as possible
                int first = rows * b / blocks, count = rows * (b + 1) / blocks - first;
                float* to = y + static_cast<size_t>(first) * ldy + start;
                if (bf16_) {
                    auto w = reinterpret_cast<const uint32_t*>(halves_.data()) + static_cast<size_t>(start) * steps;
                    with_rows<uint32_t, 1>(count, vectors, pairs + static_cast<size_t>(first) * steps, steps, w, bias_ + start, steps, to, ldy);
                } else {
                    auto w = floats_ + static_cast<size_t>(start) * depth;
                    with_rows<float, 1>(count, vectors, x + static_cast<size_t>(first) * ldx, ldx, w, bias_ + start, steps, to, ldy);
                }
            }
        }
    }

private:
    bool bf16_ = false;
    Buffer<float> floats_, bias_;
    Buffer<uint16_t> halves_;

    template <class T, int ROWS>
    static void with_rows(int rows, int vectors, const T* x, int ldx, const T* w, const float* bias, int steps, float* y, int ldy) {
        if (rows == ROWS) return with_vectors<T, ROWS, 1>(vectors, x, ldx, w, bias, steps, y, ldy);
        if constexpr (ROWS < BLOCK) with_rows<T, ROWS + 1>(rows, vectors, x, ldx, w, bias, steps, y, ldy);
    }

    template <class T, int ROWS, int VECTORS>
    static void with_vectors(int vectors, const T* x, int ldx, const T* w, const float* bias, int steps, float* y, int ldy) {
        if (vectors == VECTORS) return kernel<ROWS, VECTORS>(x, ldx, w, bias, steps, y, ldy);
        if constexpr (VECTORS < PANEL_VECTORS) with_vectors<T, ROWS, VECTORS + 1>(vectors, x, ldx, w, bias, steps, y, ldy);
    }

    static void accumulate(vec& total, float x, vec w) { total += x * w; }

    static void accumulate(vec& total, uint32_t x, bits w) {
#if defined(__AVX512BF16__)
        total = reinterpret_cast<vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), reinterpret_cast<__m512bh>(w), (__m512bh)_mm512_set1_epi32(x)));
#else
        total += from_bf16(static_cast<uint16_t>(x)) * reinterpret_cast<vec>(w << 16);
        total += from_bf16(static_cast<uint16_t>(x >> 16)) * reinterpret_cast<vec>(w & 0xffff0000u);
#endif
    }

    template <int ROWS, int VECTORS, class T>
    static void kernel(const T* x, int ldx, const T* w, const float* bias, int steps, float* y, int ldy) {
        vec total[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) total[m][v] = load(bias + v * LANES);
        for (int k = 0; k < steps; k++, w += VECTORS * LANES) {
            decltype(load(w)) weight[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) weight[v] = load(w + v * LANES);
#pragma GCC unroll 8
            for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; v++) accumulate(total[m][v], x[static_cast<size_t>(m) * ldx + k], weight[v]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) store(y + static_cast<size_t>(m) * ldy + v * LANES, total[m][v]);
    }
};

}  // namespace tacit
