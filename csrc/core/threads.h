// One pool of threads for the whole module; no second OpenMP runtime enters the process.
#pragma once

#include <cstdint>
#include <type_traits>

namespace kdfast {

namespace detail {
void run_tasks(int64_t num_tasks, int num_threads, void (*call)(void*, int64_t), void* context);
}

// Calls task(i) for i in [0, num_tasks), each exactly once, on up to num_threads threads (the caller is one of them),
// and returns when all are done. Which thread runs which task varies: tasks write to disjoint memory, and a sum over
// tasks is taken afterwards in task order, so that no result depends on num_threads. Calls from several threads, or
// from inside a task, share the pool: each runs on its caller and on those pool threads that are free; a call never
// waits for one that is not. The pool has as many threads as the largest num_threads so far, less one. Safe after fork.
// Tasks don't throw.
template <class Task>
void parallel_for(int64_t num_tasks, int num_threads, Task&& task) {
    if (num_threads <= 1 || num_tasks <= 1) {
        for (int64_t i = 0; i < num_tasks; ++i) task(i);
        return;
    }
    using T = std::remove_reference_t<Task>;
    detail::run_tasks(
        num_tasks, num_threads, [](void* context, int64_t i) { (*static_cast<T*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&task)));
}

}  // namespace kdfast
