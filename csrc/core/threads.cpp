#include "core/threads.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace kdfast::detail {
namespace {

// The memory of a job outlives it (it is the pool's own), so that a worker that wakes late sees only "nothing left".
class Pool {
  public:
    bool try_run(int64_t num_tasks, int num_threads, void (*call)(void*, int64_t), void* context) {
        std::unique_lock<std::mutex> only_one(busy_, std::try_to_lock);
        if (!only_one) return false;
        const int helpers = static_cast<int>(std::min<int64_t>(num_threads, num_tasks)) - 1;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < helpers) {
                const int id = static_cast<int>(workers_.size());
                workers_.emplace_back([this, id] { work(id); });
            }
            call_ = call;
            context_ = context;
            num_tasks_ = num_tasks;
            next_.store(0, std::memory_order_relaxed);
            helpers_wanted_ = helpers;
            running_ = helpers;
            ++job_;
        }
        wake_.notify_all();
        drain();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        return true;
    }

  private:
    void drain() {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < num_tasks_;) call_(context_, i);
    }

    void work(int id) {
        uint64_t seen = 0;
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return job_ != seen; });
                seen = job_;
                if (id >= helpers_wanted_) continue;
            }
            drain();
            std::lock_guard<std::mutex> lock(mutex_);
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex busy_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    std::atomic<int64_t> next_{0};
    int64_t num_tasks_ = 0;
    void (*call_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    int helpers_wanted_ = 0, running_ = 0;
    uint64_t job_ = 0;
};

std::atomic<Pool*> pool{nullptr};

// Never destroyed: workers may not outlive the objects that they wait on, and a process that ends needs no clean-up.
// A forked child has none of the parent's threads, so it starts a pool of its own.
Pool& the_pool() {
    static std::once_flag registered;
    std::call_once(registered, [] { pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); }); });
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
    if (the_pool().try_run(num_tasks, num_threads, call, context)) return;
    for (int64_t i = 0; i < num_tasks; ++i) call(context, i);
}

}  // namespace kdfast::detail
