// Prompts read, and rows drawn from them to their ends.
#pragma once

#include <memory>

#include "crew.h"
#include "model.h"
#include "sample.h"

namespace tacit {

extern "C" {

// The tokens that `count` rows have just drawn, and room for what has ended.
struct Seen {
    const int64_t *rows, *tokens;
    int64_t count;
    uint8_t* ended;
};

// What is drawn: row i continues prompt rows[i] with at most limits[i] tokens, which with their log-probs go to places offsets[i] on.
struct Draw {
    const int64_t *ids, *starts;  // of the prompts: ids[starts[p]] .. ids[starts[p + 1]]
    int64_t prompts;
    const int64_t *rows, *limits, *offsets;
    const uint64_t* keys;
    int64_t count;
    double temperature, top_p;
    const int64_t* stop_ids;
    int64_t stop_count;
    int64_t* tokens;
    float *logp, *entropy;  // entropy may be null
    int64_t* lengths;
    uint8_t* finished;
    int64_t at_once;  // rows decoded at a time, over all threads
    int32_t threads;
    int32_t steps;  // out: the most steps that a thread took
    Poll poll;
    int32_t (*seen)(Seen*);  // may be null; called by one thread at a time, of any; not 0 asks to stop
    int64_t* drawn;  // out, while it runs: tokens so far
};

}  // extern "C"

// Reads prompts: prompt i is ids[offsets[i]] .. ids[offsets[i + 1]]. Logits (count, vocabulary) follow the last token of each.
template <class Tick>
void read(const Model& model, Workspace& w, const std::vector<Sequence*>& prompts, const int64_t* const* ids, const int64_t* lengths, float* const* logits,
          Tick&& tick) {
    std::vector<Token> tokens;
    std::vector<int> last;
    std::vector<float*> to;
    auto flush = [&] {
        model.run(tokens.data(), static_cast<int>(tokens.size()), w, tick);
        for (size_t first = 0; first < last.size(); first += model.logits_together()) {
            int count = static_cast<int>(std::min<size_t>(model.logits_together(), last.size() - first));
            model.logits(&last[first], count, w);
            for (int i = 0; i < count; i++)
                memcpy(to[first + i], w.logits + static_cast<size_t>(i) * model.logits_width(), model.shape.vocabulary * sizeof(float));
        }
        for (const Token& token : tokens) token.sequence->length = token.position + 1;
        tokens.clear(), last.clear(), to.clear();
    };
    for (size_t i = 0; i < prompts.size(); i++) {
        prompts[i]->make_room(static_cast<int>(lengths[i]));
        for (int64_t p = 0; p < lengths[i]; p++) {
            tokens.push_back({prompts[i], static_cast<int>(p), ids[i][p], nullptr});
            if (p + 1 == lengths[i]) last.push_back(static_cast<int>(tokens.size()) - 1), to.push_back(logits[i]);
            if (tokens.size() == TOGETHER) flush();
        }
    }
    if (!tokens.empty()) flush();
}

// A prompt, read once by the first thread that needs it, and let go with its last row.
struct Source {
    enum { UNREAD, BEING_READ, READ };
    std::atomic<int> state{UNREAD};
    std::atomic<int64_t> waiting{0};  // rows not begun
    std::unique_ptr<Sequence> sequence;
    std::vector<float> logits;
};

// What the threads of a draw have in common.
struct Shared {
    std::vector<Source> sources;
    std::atomic<int64_t> next{0}, drawn{0};  // the first row not begun; tokens so far
    std::atomic<int32_t> steps{0};
    std::mutex seeing;
    explicit Shared(int64_t prompts) : sources(prompts) {}
};

// The rows that a thread decodes at a time: finished ones leave, and the next in line take their places.
class Drawing {
public:
    Drawing(const Model& model, Workspace& workspace, Draw& draw, Crew& crew, Shared& shared, int thread)
        : model_(model), w_(workspace), draw_(draw), crew_(crew), shared_(shared), thread_(thread) {}

    void run(int64_t room) {
        for (int32_t steps = 0;; steps++) {
            while (static_cast<int64_t>(active_.size()) < room && admit(room - active_.size())) {
            }
            steps_ = steps;
            if (active_.empty()) return;
            step();
        }
    }

    int32_t steps() const { return steps_; }

private:
    struct Active {
        int64_t row, drawn;
        Sequence sequence;
    };

    const Model& model_;
    Workspace& w_;
    Draw& draw_;
    Crew& crew_;
    Shared& shared_;
    const int thread_;
    int32_t steps_ = 0;
    Drawer drawer_;
    std::vector<Active> active_;
    std::vector<Token> tokens_;
    std::vector<int> picked_;
    std::vector<float> first_;
    std::vector<int64_t> seen_rows_, seen_tokens_;
    std::vector<uint8_t> ended_;

    // Begins up to `room` rows of those in line; false when there is none left.
    bool admit(int64_t room) {
        const int64_t from = shared_.next.fetch_add(room), to = std::min(from + room, draw_.count);
        if (from >= to) return false;
        read_prompts(from, to);
        const size_t before = active_.size();
        begin_seen();
        for (int64_t row = from; row < to; row++) {
            Source& source = shared_.sources[draw_.rows[row]];
            while (source.state != Source::READ) {  // by another thread
                crew_.tick(thread_);
                std::this_thread::sleep_for(std::chrono::microseconds(20));
            }
            active_.push_back({row, 0, *source.sequence});
            first_.assign(model_.logits_width(), 0);
            memcpy(first_.data(), source.logits.data(), model_.shape.vocabulary * sizeof(float));
            take(active_.back(), first_.data());
            if (source.waiting.fetch_sub(1) == 1) source.sequence.reset(), std::vector<float>().swap(source.logits);
        }
        drop_ended(before);
        return true;
    }

    void read_prompts(int64_t from, int64_t to) {
        std::vector<Source*> mine;
        std::vector<Sequence*> prompts;
        std::vector<const int64_t*> ids;
        std::vector<int64_t> lengths;
        std::vector<float*> logits;
        for (int64_t row = from; row < to; row++) {
            const int64_t p = draw_.rows[row];
            int unread = Source::UNREAD;
            Source& source = shared_.sources[p];
            if (!source.state.compare_exchange_strong(unread, Source::BEING_READ)) continue;
            source.sequence = std::make_unique<Sequence>(model_.pool);
            source.logits.resize(model_.shape.vocabulary);
            mine.push_back(&source);
            prompts.push_back(source.sequence.get()), logits.push_back(source.logits.data());
            ids.push_back(draw_.ids + draw_.starts[p]), lengths.push_back(draw_.starts[p + 1] - draw_.starts[p]);
        }
        if (mine.empty()) return;
        read(model_, w_, prompts, ids.data(), lengths.data(), logits.data(), [&] { crew_.tick(thread_); });
        for (Source* source : mine) source->state = Source::READ;
    }

    // The last token of each active row through the model, and the next one drawn.
    void step() {
        begin_seen();
        for (size_t first = 0; first < active_.size(); first += TOGETHER) {
            const size_t end = std::min(first + TOGETHER, active_.size());
            tokens_.clear();
            for (size_t i = first; i < end; i++) {
                Active& a = active_[i];
                a.sequence.make_room(a.sequence.length + 1);
                tokens_.push_back({&a.sequence, a.sequence.length, draw_.tokens[draw_.offsets[a.row] + a.drawn - 1], nullptr});
            }
            model_.run(tokens_.data(), static_cast<int>(end - first), w_, [&] { crew_.tick(thread_); });
            for (size_t i = first; i < end; i += model_.logits_together()) {
                const size_t stop = std::min(i + model_.logits_together(), end);
                picked_.resize(stop - i);
                std::iota(picked_.begin(), picked_.end(), static_cast<int>(i - first));
                model_.logits(picked_.data(), static_cast<int>(stop - i), w_);
                for (size_t j = i; j < stop; j++) {
                    active_[j].sequence.length++;
                    take(active_[j], w_.logits + (j - i) * model_.logits_width());
                }
            }
        }
        drop_ended(0);
    }

    // Draws the next token of a row from its logits.
    void take(Active& a, float* logits) {
        const int64_t place = draw_.offsets[a.row] + a.drawn;
        const double number = uniform(draw_.keys[a.row], static_cast<uint64_t>(a.drawn));
        Drawn drawn = drawer_.draw(logits, model_.shape.vocabulary, model_.logits_width(), number, draw_.temperature, draw_.top_p, draw_.entropy != nullptr);
        draw_.tokens[place] = drawn.token;
        draw_.logp[place] = drawn.logp;
        if (draw_.entropy != nullptr) draw_.entropy[place] = drawn.entropy;
        draw_.lengths[a.row] = ++a.drawn;
        seen_rows_.push_back(a.row), seen_tokens_.push_back(drawn.token);
        ended_.push_back(std::binary_search(draw_.stop_ids, draw_.stop_ids + draw_.stop_count, static_cast<int64_t>(drawn.token)));
    }

    void begin_seen() { seen_rows_.clear(), seen_tokens_.clear(), ended_.clear(); }

    // Of the active rows from `first` on, of which each has just drawn, only those stay that have not come to their end.
    void drop_ended(size_t first) {
        const int64_t count = static_cast<int64_t>(ended_.size());
        __atomic_store_n(draw_.drawn, shared_.drawn += count, __ATOMIC_RELAXED);
        if (draw_.seen != nullptr) {
            Seen seen{seen_rows_.data(), seen_tokens_.data(), count, ended_.data()};
            std::lock_guard<std::mutex> guard(shared_.seeing);
            if (crew_.stop || draw_.seen(&seen)) {
                crew_.stop = true;
                throw Stopped();
            }
        }
        size_t kept = first;
        for (size_t i = first; i < active_.size(); i++) {
            Active& a = active_[i];
            draw_.finished[a.row] = ended_[i - first];
            if (ended_[i - first] || a.drawn == draw_.limits[a.row]) continue;
            if (kept != i) active_[kept] = std::move(a);
            kept++;
        }
        active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(kept), active_.end());
    }
};

}  // namespace tacit
