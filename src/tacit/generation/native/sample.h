// How a token is drawn: tacit/generation/noise.py says what is computed, this computes the same.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "vector.h"

namespace tacit {

inline uint64_t splitmix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

// Uniform in [0, 1): number `position` of the stream `key`.
inline double uniform(uint64_t key, uint64_t position) {
    return static_cast<double>(splitmix64(key + (position + 1) * 0x9E3779B97F4A7C15u) >> 11) * 0x1p-53;
}

struct Drawn {
    int token;
    float logp, entropy;
};

class Drawer {
public:
    // `width` logits, a multiple of LANES, of which the first `vocabulary` count. They are overwritten with the weights exp((logit - max) / T).
    // Entropy, in nats and at this temperature, is computed where `with_entropy`, else 0.
    Drawn draw(float* logits, int vocabulary, int width, double number, double temperature, double top_p, bool with_entropy) {
        for (int i = vocabulary; i < width; i++) logits[i] = -INFINITY;
        vec most = splat(-INFINITY), wrong{};
        int token = 0;
        for (int i = 0; i < width; i += LANES) {
            vec x = load(logits + i);
            most = x > most ? x : most;
            wrong = x != x ? splat(1.0f) : wrong;
        }
        const float top = largest(most);
        if (sum(wrong) > 0 || !std::isfinite(top)) return {0, NAN, NAN};
        while (logits[token] != top) token++;  // the likeliest

        const double exact = temperature > 0 ? 1.0 / temperature : 1.0;
        const float scale = static_cast<float>(exact), rest = static_cast<float>(exact - scale);
        sums_.clear();
        double total = 0, tilt = 0;
        for (int start = 0; start < width; start += CHUNK) {
            vec part{}, tilted{};
            for (int i = start; i < std::min(start + CHUNK, width); i += LANES) {
                vec below = load(logits + i) - top;
                below = below < -1e30f ? splat(-1e30f) : below;  // infinity times a rest of 0 is no number
                vec s = below * scale + below * rest, w = exponential(s);
                part += w;
                if (with_entropy) tilted += w > 0.0f ? w * s : vec{};
                if (temperature > 0) store(logits + i, w);
            }
            sums_.push_back(sum(part));
            total += sums_.back();
            tilt += sum(tilted);
        }
        Drawn drawn{token, 0, with_entropy ? static_cast<float>(std::log(total) - tilt / total) : 0};
        if (temperature <= 0) return drawn.logp = static_cast<float>(-std::log(total)), drawn;
        if (top_p < 1) keep_nucleus(logits, width, top_p * total);
        drawn.token = cross(logits, width, number);
        drawn.logp = static_cast<float>(std::log(static_cast<double>(logits[drawn.token])) - std::log(total));
        return drawn;
    }

private:
    static constexpr int CHUNK = 256;
    std::vector<double> sums_;  // of the weights of each chunk
    std::vector<int> order_;

    // The first whose cumulative weight exceeds `number` times the whole.
    int cross(const float* weights, int width, double number) {
        const double point = number * std::accumulate(sums_.begin(), sums_.end(), 0.0);
        double before = 0;
        int last = 0;  // the last of positive weight so far: sums of chunks round otherwise than sums one by one
        for (size_t c = 0; c < sums_.size(); c++) {
            if (before + sums_[c] <= point && c + 1 < sums_.size()) {
                before += sums_[c];
                continue;
            }
            double reach = before;
            for (int i = static_cast<int>(c) * CHUNK; i < std::min(static_cast<int>(c + 1) * CHUNK, width); i++) {
                if (weights[i] <= 0) continue;
                reach += weights[i];
                last = i;
                if (reach > point) return i;
            }
            before += sums_[c];
        }
        for (int i = width - 1; i > last; i--)
            if (weights[i] > 0) return i;
        return last;
    }

    // Sets to 0 all but the smallest set of largest weights that holds `share`; among equals, the first are kept.
    void keep_nucleus(float* weights, int width, double share) {
        order_.clear();
        for (float least = 1e-3f;; least *= 1e-3f) {  // mostly a few large weights suffice, and nothing else need be sorted
            double held = 0;
            order_.clear();
            for (int i = 0; i < width; i++)
                if (weights[i] >= least && weights[i] > 0) order_.push_back(i), held += weights[i];
            if (held >= share || least < 1e-38f) break;
        }
        std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return weights[a] > weights[b]; });
        double before = 0;
        size_t kept = 0;
        while (kept < order_.size() && before < share) before += weights[order_[kept++]];
        order_.resize(kept);
        std::sort(order_.begin(), order_.end());
        auto next = order_.begin();
        for (int i = 0; i < width; i++) {
            if (next != order_.end() && *next == i) ++next;
            else weights[i] = 0;
        }
        for (size_t c = 0; c < sums_.size(); c++) {
            int first = static_cast<int>(c) * CHUNK;
            sums_[c] = std::accumulate(weights + first, weights + std::min(first + CHUNK, width), 0.0);
        }
    }
};

}  // namespace tacit
