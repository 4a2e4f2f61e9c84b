// Keys and values in pages of PAGE positions that sequences share: a fork costs a pointer a page, and who writes into a shared page copies it first.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "vector.h"

namespace tacit {

constexpr int PAGE = 32;  // positions; a multiple of LANES

// The place of a head's keys and values in a page. Keys come in blocks of LANES positions, [block][number of the head's width][position], so that
// the scores of a block need no sum across lanes; values are [position][number], its width rounded up to whole vectors.
struct PageShape {
    int layers, heads, width;
    int padded() const { return round_up(width, LANES); }
    size_t head() const { return static_cast<size_t>(PAGE) * (width + padded()); }
    size_t keys(int layer, int head_) const { return (static_cast<size_t>(layer) * heads + head_) * head(); }
    size_t values(int layer, int head_) const { return keys(layer, head_) + static_cast<size_t>(PAGE) * width; }
    size_t size() const { return static_cast<size_t>(layers) * heads * head(); }
};

struct Page {
    std::atomic<int> owners{1};
    Buffer<float> data;
    explicit Page(size_t size) : data(size) {}
};

class Pool {
public:
    explicit Pool(PageShape shape) : size_(shape.size()) {}

    Page* take() {
        {
            std::lock_guard<std::mutex> guard(lock_);
            if (!free_.empty()) {
                Page* page = free_.back().release();
                free_.pop_back();
                page->owners = 1;
                return page;
            }
        }
        return new Page(size_);
    }

    void give(Page* page) {
        if (page->owners.fetch_sub(1) > 1) return;
        std::unique_ptr<Page> mine(page);
        std::lock_guard<std::mutex> guard(lock_);
        free_.push_back(std::move(mine));
    }

    Page* copy(const Page* page) {
        Page* made = take();
        memcpy(made->data, page->data, size_ * sizeof(float));
        return made;
    }

private:
    size_t size_;
    std::mutex lock_;
    std::vector<std::unique_ptr<Page>> free_;
};

// A sequence in the middle of decoding. Copies share the pages.
class Sequence {
public:
    int length = 0;

    explicit Sequence(std::shared_ptr<Pool> pool) : pool_(std::move(pool)) {}
    Sequence(const Sequence& other) : length(other.length), pool_(other.pool_), pages_(other.pages_) {
        for (Page* page : pages_) page->owners++;
    }
    Sequence(Sequence&& other) noexcept : length(other.length), pool_(std::move(other.pool_)), pages_(std::move(other.pages_)) { other.pages_.clear(); }
    Sequence& operator=(Sequence other) noexcept {
        std::swap(length, other.length), std::swap(pool_, other.pool_), std::swap(pages_, other.pages_);
        return *this;
    }
    ~Sequence() {
        for (Page* page : pages_) pool_->give(page);
    }

    // Room of its own for positions [length, end).
    void make_room(int end) {
        for (size_t i = length / PAGE; i < pages_.size(); i++) {
            if (pages_[i]->owners == 1) continue;
            Page* mine = pool_->copy(pages_[i]);
            pool_->give(pages_[i]);
            pages_[i] = mine;
        }
        pages_.reserve((end + PAGE - 1) / PAGE);  // nothing throws between taking a page and owning it
        while (static_cast<int>(pages_.size()) * PAGE < end) pages_.push_back(pool_->take());
    }

    float* page(int position) const { return pages_[position / PAGE]->data; }

private:
    std::shared_ptr<Pool> pool_;
    std::vector<Page*> pages_;
};

}  // namespace tacit
