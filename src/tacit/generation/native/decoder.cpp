// The native decoder's C interface: a model, batches of sequences that are read, forked, kept and stepped, and the loop that draws groups whole.
// Every call that computes returns 0, STOPPED when `poll` asked for it, or OUT_OF_MEMORY.
#include <chrono>
#include <condition_variable>
#include <thread>

#include "model.h"
#include "sample.h"

using namespace tacit;

namespace {

enum Status { DONE, STOPPED, OUT_OF_MEMORY };
struct Stopped {};
typedef int32_t (*Poll)();  // called now and then by the calling thread, which lets the interpreter handle signals; not 0 asks to stop

// Threads of one call, and the way to stop them.
class Crew {
public:
    explicit Crew(Poll poll) : poll_(poll) {}

    // Before each layer, in every thread.
    void tick(int thread) {
        if (thread == 0 && std::chrono::steady_clock::now() - last_ > std::chrono::milliseconds(50)) ask();
        if (stop) throw Stopped();
    }

    // Runs work(thread) in `threads` threads, of which the caller is number 0.
    template <class Work>
    Status run(int threads, Work&& work) {
        std::atomic<int> running{threads - 1};
        std::atomic<int> status{DONE};
        auto guarded = [&](int thread) {
            try {
                work(thread);
            } catch (const Stopped&) {
                int done = DONE;
                status.compare_exchange_strong(done, STOPPED);
            } catch (const std::bad_alloc&) {
                status = OUT_OF_MEMORY;
                stop = true;
            }
        };
        std::vector<std::thread> others;
        std::mutex lock;
        std::condition_variable ended;
        int started = 1;
        for (; started < threads; started++) {
            try {
                others.emplace_back([&, thread = started] {
                    guarded(thread);
                    std::lock_guard<std::mutex> guard(lock);
                    running--;
                    ended.notify_one();
                });
            } catch (const std::system_error&) {  // no more threads to be had: their share is done here
                break;
            }
        }
        guarded(0);
        for (int thread = started; thread < threads; thread++) guarded(thread), running--;
        std::unique_lock<std::mutex> guard(lock);
        while (running > 0) {
            ended.wait_for(guard, std::chrono::milliseconds(20));
            guard.unlock();
            if (running > 0) ask();
            guard.lock();
        }
        guard.unlock();
        for (std::thread& other : others) other.join();
        return static_cast<Status>(status.load());
    }

    std::atomic<bool> stop{false};

private:
    Poll poll_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();

    void ask() {
        if (poll_ != nullptr && poll_()) stop = true;
        last_ = std::chrono::steady_clock::now();
    }
};

struct Batch {
    std::vector<Sequence> sequences;
};

int share(int count, int threads, int thread) { return static_cast<int>(static_cast<int64_t>(count) * thread / threads); }

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

}  // namespace

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

void* tacit_model(const Shape* shape) {
    try {
        return new Model(*shape);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void tacit_forget(void* model) { delete static_cast<Model*>(model); }

int32_t tacit_pack(void* model, const void* const* weights) {
    try {
        static_cast<Model*>(model)->pack(weights);
        return DONE;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}

void tacit_rotary(void* model, const float* cosines, const float* sines, int32_t positions) {
    static_cast<Model*>(model)->set_rotary(cosines, sines, positions);
}

int32_t tacit_prefill(const void* model, const int64_t* ids, const int64_t* starts, int32_t count, float* logits, int32_t threads, Poll poll, void** made) {
    const Model& m = *static_cast<const Model*>(model);
    try {
        auto batch = std::make_unique<Batch>();
        for (int i = 0; i < count; i++) batch->sequences.emplace_back(m.pool);
        Crew crew(poll);
        Status status = crew.run(threads, [&](int thread) {
            Workspace w;
            std::vector<Sequence*> prompts;
            std::vector<const int64_t*> from;
            std::vector<int64_t> lengths;
            std::vector<float*> to;
            for (int i = share(count, threads, thread); i < share(count, threads, thread + 1); i++) {
                prompts.push_back(&batch->sequences[i]), from.push_back(ids + starts[i]), lengths.push_back(starts[i + 1] - starts[i]);
                to.push_back(logits + static_cast<size_t>(i) * m.shape.vocabulary);
            }
            read(m, w, prompts, from.data(), lengths.data(), to.data(), [&] { crew.tick(thread); });
        });
        *made = status == DONE ? batch.release() : nullptr;
        return status;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}

void* tacit_fork(const void* batch, const int64_t* rows, int64_t count) {
    try {
        auto made = std::make_unique<Batch>();
        made->sequences.reserve(count);
        for (int64_t i = 0; i < count; i++) made->sequences.push_back(static_cast<const Batch*>(batch)->sequences[rows[i]]);
        return made.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void tacit_release(void* batch) { delete static_cast<Batch*>(batch); }

// One position more for each row of the batch, from ids (rows,) or from embeddings (rows, hidden); logits (rows, vocabulary).
int32_t tacit_step(const void* model, void* batch, const int64_t* ids, const float* embeddings, float* logits, int32_t threads, Poll poll) {
    const Model& m = *static_cast<const Model*>(model);
    std::vector<Sequence>& sequences = static_cast<Batch*>(batch)->sequences;
    const int rows = static_cast<int>(sequences.size());
    Crew crew(poll);
    Status status = crew.run(threads, [&](int thread) {
        Workspace w;
        std::vector<Token> tokens;
        std::vector<int> all;
        const int last = share(rows, threads, thread + 1), together = std::min(TOGETHER, m.logits_together());
        for (int first = share(rows, threads, thread); first < last; first += together) {
            tokens.clear(), all.clear();
            for (int i = first; i < std::min(first + together, last); i++) {
                sequences[i].make_room(sequences[i].length + 1);
                const float* embedding = embeddings == nullptr ? nullptr : embeddings + static_cast<size_t>(i) * m.shape.hidden;
                tokens.push_back({&sequences[i], sequences[i].length, ids == nullptr ? 0 : ids[i], embedding});
                all.push_back(i - first);
            }
            m.run(tokens.data(), static_cast<int>(tokens.size()), w, [&] { crew.tick(thread); });
            m.logits(all.data(), static_cast<int>(all.size()), w);
            for (size_t i = 0; i < all.size(); i++)
                memcpy(logits + (first + i) * m.shape.vocabulary, w.logits + i * m.logits_width(), m.shape.vocabulary * sizeof(float));
        }
    });
    if (status == DONE)
        for (Sequence& sequence : sequences) sequence.length++;
    return status;
}

}  // extern "C"

namespace {

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
    Drawing(const Model& model, Draw& draw, Crew& crew, Shared& shared, int thread)
        : model_(model), draw_(draw), crew_(crew), shared_(shared), thread_(thread) {}

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
    Draw& draw_;
    Crew& crew_;
    Shared& shared_;
    const int thread_;
    int32_t steps_ = 0;
    Workspace w_;
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

}  // namespace

extern "C" int32_t tacit_draw(const void* model, Draw* draw) {
    const Model& m = *static_cast<const Model*>(model);
    try {
        Shared shared(draw->prompts);
        for (int64_t row = 0; row < draw->count; row++) shared.sources[draw->rows[row]].waiting++;
        Crew crew(draw->poll);
        Status status = crew.run(draw->threads, [&](int thread) {
            Drawing drawing(m, *draw, crew, shared, thread);
            const int64_t at_once = std::min(draw->at_once, draw->count);
            drawing.run(std::max<int64_t>(1, (at_once + draw->threads - 1) / draw->threads));
            int32_t most = shared.steps;
            while (drawing.steps() > most && !shared.steps.compare_exchange_weak(most, drawing.steps())) {
            }
        });
        draw->steps = shared.steps;
        return status;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}
