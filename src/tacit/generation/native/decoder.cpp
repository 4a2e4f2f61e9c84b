// The native decoder's C interface: a model, batches of sequences that are read, forked and stepped, and rows drawn whole.
// Every call that computes returns a Status.
#include "drawing.h"

using namespace tacit;

namespace {

struct Batch {
    std::vector<Sequence> sequences;
};

// A model, and a workspace for each thread. One call computes at a time.
struct Native {
    Model model;
    std::mutex busy;
    std::vector<Workspace> desks;

    explicit Native(Shape shape) : model(shape) {}

    // Runs work(thread, workspace) in `threads` threads.
    template <class Work>
    Status run(Crew& crew, int threads, Work&& work) {
        std::lock_guard<std::mutex> guard(busy);
        if (desks.size() < static_cast<size_t>(threads)) desks.resize(threads);
        return crew.run(threads, [&](int thread) { work(thread, desks[thread]); });
    }
};

int share(int count, int threads, int thread) { return static_cast<int>(static_cast<int64_t>(count) * thread / threads); }

}  // namespace

extern "C" {

void* tacit_model(const Shape* shape) {
    try {
        return new Native(*shape);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void tacit_forget(void* model) { delete static_cast<Native*>(model); }

int32_t tacit_pack(void* model, const void* const* weights) {
    try {
        static_cast<Native*>(model)->model.pack(weights);
        return DONE;
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
}

void tacit_rotary(void* model, const float* cosines, const float* sines, int32_t positions) {
    static_cast<Native*>(model)->model.set_rotary(cosines, sines, positions);
}

int32_t tacit_prefill(void* model, const int64_t* ids, const int64_t* starts, int32_t count, float* logits, int32_t threads, Poll poll, void** made) {
    Native& native = *static_cast<Native*>(model);
    const Model& m = native.model;
    try {
        auto batch = std::make_unique<Batch>();
        for (int i = 0; i < count; i++) batch->sequences.emplace_back(m.pool);
        Crew crew(poll);
        Status status = native.run(crew, threads, [&](int thread, Workspace& w) {
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
int32_t tacit_step(void* model, void* batch, const int64_t* ids, const float* embeddings, float* logits, int32_t threads, Poll poll) {
    Native& native = *static_cast<Native*>(model);
    const Model& m = native.model;
    std::vector<Sequence>& sequences = static_cast<Batch*>(batch)->sequences;
    const int rows = static_cast<int>(sequences.size());
    Crew crew(poll);
    Status status = native.run(crew, threads, [&](int thread, Workspace& w) {
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

int32_t tacit_draw(void* model, Draw* draw) {
    Native& native = *static_cast<Native*>(model);
    try {
        Shared shared(draw->prompts);
        const double read = static_cast<double>(draw->starts[draw->prompts]) / static_cast<double>(draw->prompts);
        const double positions = read + static_cast<double>(draw->offsets[draw->count]) / static_cast<double>(draw->count) / 2;  // of a row half-way
        for (int64_t row = 0; row < draw->count; row++) shared.sources[draw->rows[row]].waiting++;
        Crew crew(draw->poll);
        Status status = native.run(crew, draw->threads, [&](int thread, Workspace& workspace) {
            Drawing drawing(native.model, workspace, *draw, crew, shared, thread);
            const int64_t at_once = std::min(draw->at_once, draw->count);
            drawing.run(std::clamp<int64_t>((at_once + draw->threads - 1) / draw->threads, 1, native.model.rows_near(positions)));
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

}  // extern "C"
