// A decoder-only transformer of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; biases and norms of query and key
// heads where the model has them.
#pragma once

#include <vector>

#include "attention.h"
#include "matrix.h"

namespace tacit {

extern "C" struct Shape {
    int32_t layers, hidden, heads, kv_heads, width, inner, vocabulary;  // width of a head; inner size of the MLP
    int32_t stored_bf16, computed_bf16;                                 // how weights are given, and how they are multiplied
    float epsilon, scale;                                               // of the norms; of the attention scores
};

// The order in which weights are given; those of a layer follow for each layer.
enum { EMBEDDING, HEAD, FINAL_NORM, GLOBAL_WEIGHTS };
enum { NORM_1, Q, K, V, O, Q_NORM, K_NORM, NORM_2, GATE, UP, DOWN, Q_BIAS, K_BIAS, V_BIAS, O_BIAS, GATE_BIAS, UP_BIAS, DOWN_BIAS, LAYER_WEIGHTS };

struct Layer {
    Buffer<float> norm_1, norm_2, q_norm, k_norm;
    bool head_norm = false;
    Matrix qkv, out, gate_up, down;
};

// One position to run: its sequence has room for it, and what stands before it is there or comes in the same pass.
struct Token {
    Sequence* sequence;
    int position;
    int64_t id;              // or, where `embedding` is given,
    const float* embedding;  // (hidden,)
};

// What a thread needs to run positions; grows as needed.
struct Workspace {
    Buffer<float> x, h, qkv, mixed, gate_up, scores, picked, logits;
    Buffer<uint32_t> pairs;
};

constexpr double CACHE = 12e6;  // bytes that a thread may hope to keep near
constexpr int TOGETHER = 128;  // positions that go through the model in one pass: more would leave the cache

class Model {
public:
    const Shape shape;
    const PageShape pages;
    const std::shared_ptr<Pool> pool;

    explicit Model(Shape s) : shape(s), pages{s.layers, s.kv_heads, s.width}, pool(std::make_shared<Pool>(pages)), layers_(s.layers) {
        bool bf16 = s.computed_bf16;
        for (Layer& layer : layers_) {
            layer.qkv.shape((s.heads + 2 * s.kv_heads) * s.width, s.hidden, bf16);
            layer.out.shape(s.hidden, s.heads * s.width, bf16);
            layer.gate_up.shape(2 * s.inner, s.hidden, bf16);
            layer.down.shape(s.hidden, s.inner, bf16);
        }
        head_.shape(s.vocabulary, s.hidden, bf16);
    }

    // Takes over the weights. The embedding is read from where it lies for as long as the model runs.
    void pack(const void* const* weights) {
        auto stored = [&](int i) { return Stored{weights[i], shape.stored_bf16 != 0}; };
        embedding_ = stored(EMBEDDING);
        head_.pack(0, shape.vocabulary, stored(HEAD), {});
        unpack(final_norm_, stored(FINAL_NORM), shape.hidden);
        for (int l = 0; l < shape.layers; l++) {
            Layer& layer = layers_[l];
            auto of = [&](int i) { return stored(GLOBAL_WEIGHTS + l * LAYER_WEIGHTS + i); };
            int queries = shape.heads * shape.width, keys = shape.kv_heads * shape.width;
            unpack(layer.norm_1, of(NORM_1), shape.hidden), unpack(layer.norm_2, of(NORM_2), shape.hidden);
            layer.head_norm = bool(of(Q_NORM));
            if (layer.head_norm) unpack(layer.q_norm, of(Q_NORM), shape.width), unpack(layer.k_norm, of(K_NORM), shape.width);
            layer.qkv.pack(0, queries, of(Q), of(Q_BIAS));
            layer.qkv.pack(queries, keys, of(K), of(K_BIAS));
            layer.qkv.pack(queries + keys, keys, of(V), of(V_BIAS));
            layer.out.pack(0, shape.hidden, of(O), of(O_BIAS));
            layer.gate_up.pack(0, shape.inner, of(GATE), of(GATE_BIAS));
            layer.gate_up.pack(shape.inner, shape.inner, of(UP), of(UP_BIAS));
            layer.down.pack(0, shape.hidden, of(DOWN), of(DOWN_BIAS));
        }
    }

    // Cosines and sines (positions, width / 2).
    void set_rotary(const float* cosines, const float* sines, int positions) {
        size_t size = static_cast<size_t>(positions) * (shape.width / 2);
        cosines_.assign(cosines, cosines + size), sines_.assign(sines, sines + size);
    }

    // Runs positions (count <= TOGETHER) through the layers: last hidden states in w.x, rows of hidden_width(). `tick` is called before each layer.
    template <class Tick>
    void run(const Token* tokens, int count, Workspace& w, Tick&& tick) const {
        const int ld = hidden_width(), queries = shape.heads * shape.width, group = shape.heads / shape.kv_heads, inner = round_up(shape.inner, LANES);
        reserve(tokens, count, w);
        for (int m = 0; m < count; m++) embed(tokens[m], w.x + static_cast<size_t>(m) * ld);
        for (int l = 0; l < shape.layers; l++) {
            tick();
            const Layer& layer = layers_[l];
            const int columns = layer.qkv.width;
            normalise(w.x, count, layer.norm_1, w.h);
            layer.qkv.product(w.h, ld, count, w.qkv, columns, w.pairs);
            for (int m = 0; m < count; m++) place(layer, l, tokens[m], w.qkv + static_cast<size_t>(m) * columns);
            for (int m = 0; m < count; m++)
                for (int head = 0; head < shape.kv_heads; head++) {
                    size_t first = static_cast<size_t>(head) * group * shape.width;
                    attend(group, *tokens[m].sequence, tokens[m].position + 1, pages, l, head, w.qkv + static_cast<size_t>(m) * columns + first, w.scores,
                           w.mixed + static_cast<size_t>(m) * queries + first);
                }
            layer.out.product(w.mixed, queries, count, w.h, ld, w.pairs);
            add(w.x, w.h, count);
            normalise(w.x, count, layer.norm_2, w.h);
            layer.gate_up.product(w.h, ld, count, w.gate_up, layer.gate_up.width, w.pairs);
            for (int m = 0; m < count; m++) gate(w.gate_up + static_cast<size_t>(m) * layer.gate_up.width, w.mixed + static_cast<size_t>(m) * inner);
            layer.down.product(w.mixed, inner, count, w.h, ld, w.pairs);
            add(w.x, w.h, count);
        }
    }

    // Logits of these rows of w.x, in w.logits (count, logits_width()).
    void logits(const int* rows, int count, Workspace& w) const {
        const int ld = hidden_width();
        w.picked.reserve(static_cast<size_t>(count) * ld);
        w.logits.reserve(static_cast<size_t>(count) * head_.width);
        for (int i = 0; i < count; i++) memcpy(w.picked + static_cast<size_t>(i) * ld, w.x + static_cast<size_t>(rows[i]) * ld, ld * sizeof(float));
        normalise(w.picked, count, final_norm_, w.picked);
        head_.product(w.picked, ld, count, w.logits, head_.width, w.pairs);
    }

    int logits_width() const { return head_.width; }

    // Rows of so many positions that a thread had better decode at a time. With a small model it is attention that waits for memory, and fewer rows,
    // whose keys and values stay near, are faster; a large one has to fetch its weights anyway, and more rows share them.
    int64_t rows_near(double positions) const {
        const double weights = static_cast<double>(shape.layers) * (layers_[0].qkv.bytes() + layers_[0].out.bytes() + layers_[0].gate_up.bytes() +
                                                                    layers_[0].down.bytes()) + head_.bytes();
        const double row = sizeof(float) * 2.0 * positions * shape.layers * shape.kv_heads * shape.width;
        return 2 * weights > CACHE ? INT64_MAX : std::max<int64_t>(16, static_cast<int64_t>((CACHE - weights) / row));
    }

    // Rows whose logits fit the cache.
    int logits_together() const { return std::clamp((1 << 20) / head_.width, BLOCK, TOGETHER); }

private:
    std::vector<Layer> layers_;
    Matrix head_;
    Stored embedding_;
    Buffer<float> final_norm_;
    std::vector<float> cosines_, sines_;

    int hidden_width() const { return round_up(shape.hidden, LANES); }

    static void unpack(Buffer<float>& to, Stored from, int count) {
        to.reserve(round_up(count, LANES));
        for (int i = 0; i < count; i++) to[i] = from[i];
    }

    void reserve(const Token* tokens, int count, Workspace& w) const {
        size_t rows = count;
        int longest = 0;
        for (int m = 0; m < count; m++) longest = std::max(longest, tokens[m].position + 1);
        w.x.reserve(rows * hidden_width()), w.h.reserve(rows * hidden_width());
        w.qkv.reserve(rows * layers_[0].qkv.width), w.gate_up.reserve(rows * layers_[0].gate_up.width + LANES);
        w.mixed.reserve(rows * std::max(shape.heads * shape.width, round_up(shape.inner, LANES)));
        w.scores.reserve(static_cast<size_t>(QUERIES) * round_up(longest, PAGE));
    }

    void embed(const Token& token, float* x) const {
        size_t first = static_cast<size_t>(token.id) * shape.hidden;
        for (int i = 0; i < shape.hidden; i++) x[i] = token.embedding != nullptr ? token.embedding[i] : embedding_[first + i];
        for (int i = shape.hidden; i < hidden_width(); i++) x[i] = 0;
    }

    // to = x / rms(x) * weight; idle columns stay 0.
    void normalise(const float* x, int count, const float* weight, float* to) const {
        for (int m = 0; m < count; m++, x += hidden_width(), to += hidden_width()) {
            vec squares{};
            for (int i = 0; i < hidden_width(); i += LANES) squares += load(x + i) * load(x + i);
            float factor = 1.0f / std::sqrt(sum(squares) / shape.hidden + shape.epsilon);
            for (int i = 0; i < hidden_width(); i += LANES) store(to + i, load(x + i) * factor * load(weight + i));
        }
    }

    void add(float* x, const float* y, int count) const {
        for (size_t i = 0; i < static_cast<size_t>(count) * hidden_width(); i += LANES) store(x + i, load(x + i) + load(y + i));
    }

    // Norms and turns query and key heads of one row, scales the queries, and puts keys and values into the cache.
    void place(const Layer& layer, int l, const Token& token, float* row) const {
        const int width = shape.width, half = width / 2;
        const float *cosines = &cosines_[static_cast<size_t>(token.position) * half], *sines = &sines_[static_cast<size_t>(token.position) * half];
        for (int head = 0; head < shape.heads + shape.kv_heads; head++) {
            float* x = row + head * width;
            const bool query = head < shape.heads;
            if (layer.head_norm) {
                const float* weight = query ? layer.q_norm : layer.k_norm;
                float squares = 0;
                for (int i = 0; i < width; i++) squares += x[i] * x[i];
                float factor = 1.0f / std::sqrt(squares / width + shape.epsilon);
                for (int i = 0; i < width; i++) x[i] *= factor * weight[i];
            }
            const float scale = query ? shape.scale : 1.0f;
            for (int i = 0; i < half; i++) {
                float a = x[i], b = x[half + i];
                x[i] = scale * (a * cosines[i] - b * sines[i]);
                x[half + i] = scale * (b * cosines[i] + a * sines[i]);
            }
        }
        float* page = token.sequence->page(token.position);
        const int place = token.position % PAGE, block = place / LANES * LANES, lane = place % LANES;
        for (int head = 0; head < shape.kv_heads; head++) {
            const float *key = row + (shape.heads + head) * width, *value = row + (shape.heads + shape.kv_heads + head) * width;
            float* keys = page + pages.keys(l, head) + static_cast<size_t>(block) * width + lane;
            for (int i = 0; i < width; i++) keys[static_cast<size_t>(i) * LANES] = key[i];
            memcpy(page + pages.values(l, head) + static_cast<size_t>(place) * pages.padded(), value, width * sizeof(float));
        }
    }

    // to = silu(gate) * up; `both` holds one after the other, and vectors may read past the end of either.
    void gate(const float* both, float* to) const {
        for (int i = 0; i < shape.inner; i += LANES) {
            vec g = load(both + i);
            store(to + i, g / (1.0f + exponential(-g)) * load(both + shape.inner + i));
        }
    }
};

}  // namespace tacit
