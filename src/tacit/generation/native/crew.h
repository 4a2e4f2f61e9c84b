// Threads of one call, and the way to stop them.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace tacit {

enum Status { DONE, STOPPED, OUT_OF_MEMORY };
struct Stopped {};
typedef int32_t (*Poll)();  // called now and then by the calling thread, which lets the interpreter handle signals; not 0 asks to stop

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

}  // namespace tacit
