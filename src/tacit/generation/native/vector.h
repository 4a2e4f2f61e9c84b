// Vectors of as many floats as a register of this machine holds, by the vector extension of gcc and clang: one source for AVX-512, AVX2, NEON and
// whatever else the compiler knows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace tacit {

#if defined(__AVX512F__)
constexpr int LANES = 16, PANEL_VECTORS = 4;  // vectors of columns that a matrix product works on at a time: they and the sums must fit the registers
#elif defined(__AVX__)
constexpr int LANES = 8, PANEL_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, PANEL_VECTORS = 4;
#else
constexpr int LANES = 4, PANEL_VECTORS = 2;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));

inline vec load(const float* p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline bits load(const uint32_t* p) {
    bits v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, vec v) { memcpy(p, &v, sizeof v); }

inline vec splat(float x) { return x - vec{}; }

inline float sum(vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

inline float largest(vec v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

// e^x to two units in the last place; exactly 0 below -87. Range reduction by ln 2 in two parts, polynomial of the Cephes library.
inline vec exponential(vec x) {
    vec capped = x > 88.0f ? splat(88.0f) : x;
    capped = capped < -87.0f ? splat(-87.0f) : capped;
    vec n = capped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer now stands in the low bits
    bits exponent = reinterpret_cast<bits>(n) << 23;
    n -= 12582912.0f;
    vec r = (capped - n * 0.693359375f) - n * -2.12194440e-4f;
    vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    y = reinterpret_cast<vec>(reinterpret_cast<bits>(y) + exponent);
    return x < -87.0f ? vec{} : y;
}

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

// Floats or other plain numbers at the start of a cache line, zero at first. Growing loses the content.
template <class T>
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t size) { reserve(size); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
    ~Buffer() { free(data_); }

    void reserve(size_t size) {
        if (size <= size_) return;
        free(data_);
        data_ = nullptr, size_ = 0;
        size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
        data_ = static_cast<T*>(aligned_alloc(64, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
        memset(static_cast<void*>(data_), 0, bytes);
        size_ = size;
    }

    T* data() const { return data_; }
    operator T*() const { return data_; }
    size_t size() const { return size_; }

private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace tacit
