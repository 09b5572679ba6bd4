#include "core/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace kdfast::detail {
namespace {

// A thread polls this long before it sleeps, which is what waking it costs (30 to 50 µs where its core sleeps too):
// calls that follow closely find their helpers awake (2 × 20 µs of work on 2 cores: 21 µs, against 43), and where cores
// are scarce a call loses no more than this. No longer, and no sched_yield: PyTorch's OpenMP threads spin for
// milliseconds after each of its ops, and a yield hands them the core for all of that (its ops and ours in turn: 0.9 ms
// against 1.3).
constexpr std::chrono::microseconds kPolling{30};

// Polls for a short while; true as soon as ready() is.
template <class Ready>
bool poll(Ready ready) {
    const auto end = std::chrono::steady_clock::now() + kPolling;
    do {
        if (ready()) return true;
        for (int i = 0; i < 8; ++i) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

// One call of parallel_for. It lives on its caller's stack: others reach it only while it is open (in the pool's list)
// or while they count among its helpers.
struct Job {
    const int64_t num_tasks;
    void (*const call)(void*, int64_t);
    void* const context;
    int wanted;  // helpers that may still join; the pool's mutex guards this and `later`
    Job* later = nullptr;
    std::atomic<int> helpers{0};  // at work; changed with the pool's mutex held
    alignas(64) std::atomic<int64_t> next{0};

    void drain() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) call(context, i);
    }
};

class Pool {
  public:
    void run(Job& job) {
        std::unique_lock<std::mutex> lock(mutex_);
        grow(job.wanted);
        const int to_wake = std::min(asleep_, open(job) - polling_);
        lock.unlock();
        for (int i = 0; i < to_wake; ++i) wake_.notify_one();
        job.drain();
        // Who has not come by now is not waited for.
        lock.lock();
        close(job);
        const auto done = [&] { return job.helpers.load(std::memory_order_acquire) == 0; };
        if (done()) return;
        lock.unlock();
        if (poll(done)) return;
        lock.lock();
        ++waiting_;
        done_.wait(lock, done);
        --waiting_;
    }

  private:
    // Threads are never more than the largest number of helpers that any job has wanted; fewer where the system gives
    // no more.
    void grow(int helpers) {
        try {
            while (static_cast<int>(workers_.size()) < helpers) workers_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {
        }
    }

    // Puts the job at the list's end; returns how many helpers are wanted by now, by all jobs.
    int open(Job& job) {
        int wanted = job.wanted;
        Job** at = &first_;
        for (; *at != nullptr; at = &(*at)->later) wanted += (*at)->wanted;
        *at = &job;
        any_open_.store(true, std::memory_order_relaxed);
        return wanted;
    }

    // Takes the job from the list, if it is still there.
    void close(Job& job) {
        Job** at = &first_;
        while (*at != nullptr && *at != &job) at = &(*at)->later;
        if (*at != nullptr) *at = job.later;
        any_open_.store(first_ != nullptr, std::memory_order_relaxed);
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            if (first_ == nullptr) {
                ++polling_;
                lock.unlock();
                poll([this] { return any_open_.load(std::memory_order_relaxed); });
                lock.lock();
                --polling_;
                ++asleep_;
                wake_.wait(lock, [this] { return first_ != nullptr; });
                --asleep_;
            }
            Job& job = *first_;
            job.helpers.fetch_add(1, std::memory_order_relaxed);
            if (--job.wanted == 0) close(job);
            lock.unlock();
            job.drain();
            lock.lock();
            // After this the job may be gone.
            if (job.helpers.fetch_sub(1, std::memory_order_release) == 1 && waiting_ > 0) done_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;  // workers for a job, callers for their helpers
    std::vector<std::thread> workers_;
    Job* first_ = nullptr;  // open jobs, the oldest first
    std::atomic<bool> any_open_{false};
    int polling_ = 0, asleep_ = 0, waiting_ = 0;
};

std::atomic<Pool*> pool{nullptr};

// A forked child has none of the parent's threads, so it starts a pool of its own.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

// Never destroyed: workers may not outlive the objects that they wait on, and a process that ends needs no clean-up.
Pool& the_pool() {
    Pool* p = pool.load(std::memory_order_acquire);
    if (p == nullptr) {
        Pool* fresh = new Pool;
        if (pool.compare_exchange_strong(p, fresh)) return *fresh;
        delete fresh;  // another thread was first; a pool without jobs has no threads
    }
    return *p;
}

}  // namespace

void run_tasks(int64_t num_tasks, int num_threads, void (*call)(void*, int64_t), void* context) {
    Job job{num_tasks, call, context, static_cast<int>(std::min<int64_t>(num_threads, num_tasks)) - 1};
    the_pool().run(job);
}

}  // namespace kdfast::detail
