#include "emulator/machine.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string_view>

#include "emulator/bank_conflicts.h"
#include "emulator/guarded_memory.h"
#include "emulator/shared_memory.h"

namespace kdfast::emulator {
namespace {

constexpr int kMaxThreads = 1024;

// The order in which threads that can run do.
enum class Order { as_they_came, any, by_priority };

struct Scheduler {
    Order order;
    int give_way_every;  // of so many accesses to shared memory one lets others go first; 0: none
    uint64_t state;      // of the random numbers
    std::vector<Thread*> ready;
    size_t first = 0;  // of `ready`, those before it have gone
    std::string error;
    void (*body)(void*);
    void* context;

    uint32_t random() {  // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<uint32_t>(state >> 20);
    }
    void push(Thread* t) {
        t->wait = Wait::none;
        ready.push_back(t);
    }
    Thread* pop() {
        if (first == ready.size()) {
            ready.clear();
            first = 0;
            return nullptr;
        }
        const auto begin = ready.begin() + static_cast<std::ptrdiff_t>(first);
        if (order == Order::any) {
            std::swap(*begin, ready[first + random() % (ready.size() - first)]);
        } else if (order == Order::by_priority) {
            const auto lower = [](const Thread* a, const Thread* b) { return a->priority < b->priority; };
            std::iter_swap(begin, std::max_element(begin, ready.end(), lower));
        }
        Thread* const next = ready[first++];
        if (first > 4096) {
            ready.erase(ready.begin(), ready.begin() + static_cast<std::ptrdiff_t>(first));
            first = 0;
        }
        return next;
    }
};
Scheduler scheduler;
Fiber outside;  // where launch came from

const char* name(Wait wait) {
    switch (wait) {
        case Wait::none:
            return "running";
        case Wait::block_barrier:
            return "__syncthreads";
        case Wait::warp_barrier:
            return "__syncwarp";
        case Wait::shuffle:
            return "shuffle";
        case Wait::vote:
            return "vote";
        case Wait::mma:
            return "mma";
        case Wait::ldmatrix:
            return "ldmatrix";
        case Wait::movmatrix:
            return "movmatrix";
        default:
            return "exited";
    }
}

bool same(const Site& a, const Site& b) {
    return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

bool is_kernel_source(const Site& site) { return std::string_view(site.file_name()).ends_with(".cu"); }

std::string describe(const Thread& t) {
    const auto& b = block.index;
    return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + ") thread " +
           std::to_string(t.number) + " (warp " + std::to_string(t.warp) + " lane " + std::to_string(t.lane) + ")";
}

std::string plural(int n) { return std::to_string(n) + (n == 1 ? " thread" : " threads"); }

// Who waits where, once nobody can run.
std::string deadlock() {
    std::vector<const Thread*> kinds;  // one of each
    std::vector<int> counts;
    for (int i = 0; i < block.num_threads; ++i) {
        const Thread& t = *block.threads[static_cast<size_t>(i)];
        size_t k = 0;
        while (k < kinds.size() &&
               !(kinds[k]->wait == t.wait && (t.wait == Wait::exited || same(kinds[k]->site, t.site))))
            ++k;
        if (k == kinds.size()) {
            kinds.push_back(&t);
            counts.push_back(0);
        }
        ++counts[k];
    }
    std::string text = "deadlock:";
    for (size_t k = 0; k < kinds.size() && k < 6; ++k) {
        text += (k == 0 ? " " : "; ") + plural(counts[k]);
        text += kinds[k]->wait == Wait::exited ? " exited"
                                               : std::string(" at ") + name(kinds[k]->wait) + ", " + at(kinds[k]->site);
        text += " (e.g. thread " + std::to_string(kinds[k]->number) + ")";
    }
    return text;
}

void jump(Thread* to) {  // null: outside
    Thread* const from = thread;
    thread = to;
    Fiber::jump(from ? from->fiber : outside, to ? to->fiber : outside);
}

// The running thread waits, or stands in `ready`: others run until it is its turn again.
void suspend() {
    Thread* const next = scheduler.pop();
    if (next == nullptr) {
        if (scheduler.error.empty()) scheduler.error = deadlock();
        jump(nullptr);
    } else if (next != thread) {
        jump(next);
    }
}

void leave() {
    Thread& t = *thread;
    t.wait = Wait::exited;
    Warp& warp = block.warps[static_cast<size_t>(t.warp)];
    warp.alive &= ~(1u << t.lane);
    --block.alive;
    if (!t.open.empty() || !t.groups.empty()) {
        const Site& site = t.open.empty() ? t.groups.front().front().site : t.open.front().site;
        fail("thread exits before it has waited for its cp.async", site);
    }
    for (const Meeting& m : warp.meetings)
        if (m.arrived != 0 && (m.mask >> t.lane & 1))
            fail(std::string("thread exits while its warp waits for it in ") + name(m.kind), m.site);
    if (block.arrived > 0) {
        const auto waits = [](const auto& other) { return other->wait == Wait::block_barrier; };
        const auto& waiting = *std::find_if(block.threads.begin(), block.threads.end(), waits);
        fail("thread exits while " + plural(block.arrived) + " of its block wait for it in __syncthreads",
             waiting->site);
    }
}

void main_of_thread() {
    try {
        scheduler.body(scheduler.context);
        leave();
    } catch (const std::exception& e) {
        scheduler.error = e.what();
    }
    Thread* const next = scheduler.error.empty() ? scheduler.pop() : nullptr;
    if (next == nullptr && scheduler.error.empty() && block.alive > 0) scheduler.error = deadlock();
    jump(next);
    __builtin_trap();  // nobody comes back to a thread that has ended
}

// A fault in a kernel ends it like any other error: its global pointers ran into a guard page, or its stack is full.
void fault(const void* address) {
    const Thread& t = *thread;
    scheduler.error =
        t.fiber.overflowed(address) ? "stack overflow" : "invalid global memory access: " + locate(address);
    scheduler.error += ", after " + at(t.last) + " in " + describe(t);
    jump(nullptr);
}

void set_order(uint64_t seed) {
    scheduler.state = seed * 0x9E3779B97F4A7C15 + 0x1234567;
    scheduler.random();
    if (seed == 0) {
        scheduler.order = Order::as_they_came;
        scheduler.give_way_every = 0;
    } else {
        scheduler.order = seed % 2 ? Order::any : Order::by_priority;
        scheduler.give_way_every = 2 + static_cast<int>(scheduler.random() % 30);
    }
}

void close_all_accesses() {
    for (int warp = 0; warp < block.num_threads / 32; ++warp) close_accesses(warp);
}

void run_block() {
    block.first_epoch = ++block.epoch;
    block.arrived = 0;
    block.alive = block.num_threads;
    scheduler.ready.clear();
    scheduler.first = 0;
    scheduler.error.clear();
    for (Warp& warp : block.warps) {
        warp.alive = ~0u;
        warp.barriers = 0;
        for (Meeting& m : warp.meetings) m.arrived = 0;
        std::memset(warp.knows, 0, sizeof warp.knows);
    }
    const dim3& size = block.size;
    for (int i = 0; i < block.num_threads; ++i) {
        Thread& t = *block.threads[static_cast<size_t>(i)];
        const unsigned n = static_cast<unsigned>(i);
        t.number = i;
        t.warp = i / 32;
        t.lane = i % 32;
        t.index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
        t.priority = scheduler.random();
        t.last = t.kernel = Site();
        t.open.clear();
        t.groups.clear();
        t.fiber.start(main_of_thread, i % 16);
        scheduler.push(&t);
    }
    jump(scheduler.pop());
    if (!scheduler.error.empty()) throw Error(scheduler.error);
    close_all_accesses();
}

}  // namespace

std::string at(const Site& site) {
    if (site.line() == 0) return "the kernel's first line";
    const char* const slash = std::strrchr(site.file_name(), '/');
    return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

void see(const Site& site) {
    thread->last = site;
    if (is_kernel_source(site)) thread->kernel = site;
}

void fail(const std::string& what, const Site& site) {
    std::string text = what + " at " + at(site);
    if (thread != nullptr) {
        if (!is_kernel_source(site)) text += ", after " + at(thread->kernel) + ",";
        text += " in " + describe(*thread);
    }
    throw Error(text);
}

void maybe_give_way() {
    if (scheduler.give_way_every == 0 || scheduler.random() % static_cast<uint32_t>(scheduler.give_way_every) != 0)
        return;
    scheduler.push(thread);
    suspend();
}

void block_barrier(const Site& site) {
    see(site);
    if (block.alive != block.num_threads)
        fail("__syncthreads after " + plural(block.num_threads - block.alive) + " of the block exited", site);
    for (int i = 0; i < block.num_threads; ++i) {
        const Thread& other = *block.threads[static_cast<size_t>(i)];
        if (other.wait != Wait::block_barrier) continue;
        if (!same(other.site, site))
            fail("threads of one block wait at different __syncthreads, thread " + std::to_string(other.number) +
                     " at " + at(other.site),
                 site);
        break;  // those who wait have been compared with each other
    }
    thread->wait = Wait::block_barrier;
    thread->site = site;
    if (++block.arrived == block.num_threads) {
        block.arrived = 0;
        ++block.epoch;
        close_all_accesses();
        for (int i = 0; i < block.num_threads; ++i) scheduler.push(block.threads[static_cast<size_t>(i)].get());
    }
    suspend();
}

void meet(Wait kind, unsigned mask, void* operand, void (*combine)(void**, void*), void* context, const Site& site) {
    see(site);
    Warp& warp = block.warps[static_cast<size_t>(thread->warp)];
    const unsigned me = 1u << thread->lane;
    if (!(mask & me)) fail(std::string(name(kind)) + ": the calling lane is not in the mask", site);
    if (mask & ~warp.alive) fail(std::string(name(kind)) + ": the mask names lanes that have exited", site);
    Meeting* meeting = nullptr;
    for (Meeting& m : warp.meetings) {
        if (m.arrived == 0 || !(m.mask & me)) continue;
        // Lanes that wait for this one there, and that it would wait for here, never meet. (Others may: halves of a
        // warp that meet among themselves before they meet each other.)
        if (m.mask != mask && !(m.arrived & mask)) continue;
        if (m.mask != mask || m.kind != kind || !same(m.site, site))
            fail(std::string("lanes of one warp disagree: ") + name(kind) + " meets " + name(m.kind) + ", " +
                     at(m.site) + (m.mask != mask ? ", of another mask" : ""),
                 site);
        meeting = &m;
    }
    if (meeting == nullptr) {
        for (Meeting& m : warp.meetings)
            if (m.arrived == 0) meeting = &m;
        if (meeting == nullptr) fail("more than four groups of lanes wait in one warp", site);
        *meeting = {mask, 0, kind, site};
    }
    thread->operand = operand;
    thread->wait = kind;
    thread->site = site;
    meeting->arrived |= me;
    if (meeting->arrived != mask) return suspend();
    meeting->arrived = 0;
    void* operands[32] = {};
    const auto lanes = block.threads.begin() + thread->warp * 32;
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) operands[i] = lanes[i]->operand;
    combine(operands, context);
    if (mask == warp.alive) close_accesses(thread->warp);
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1 && i != thread->lane) scheduler.push(lanes[i].get());
    thread->wait = Wait::none;
    if (scheduler.order == Order::as_they_came) return;
    scheduler.push(thread);
    suspend();
}

void run(dim3 grid, dim3 size, size_t dynamic_shared, void (*body)(void*), void* context, const Site& site) {
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    const uint64_t num_threads = uint64_t{size.x} * size.y * size.z, num_blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (num_threads == 0 || num_threads > kMaxThreads || num_threads % 32 != 0)
        throw Error("launch: a block of " + std::to_string(num_threads) + " threads, not 32 to 1024 in whole warps");
    if (num_blocks == 0 || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff)
        throw Error("launch: a grid that is empty or over 2^31 - 1, 65535, 65535 blocks");
    check_dynamic_shared(dynamic_shared, site);
    block.grid = grid;
    block.size = size;
    block.num_threads = static_cast<int>(num_threads);
    while (block.threads.size() < num_threads) block.threads.push_back(std::make_unique<Thread>());
    block.warps.resize(num_threads / 32);
    scheduler.body = body;
    scheduler.context = context;
    set_order(settings.seed);
    std::vector<uint64_t> order(num_blocks);
    for (uint64_t i = 0; i < num_blocks; ++i) order[i] = i;
    if (scheduler.order != Order::as_they_came)
        for (uint64_t i = num_blocks; i > 1; --i) std::swap(order[i - 1], order[scheduler.random() % i]);
    const FaultHandler handler(fault);
    for (const uint64_t i : order) {
        block.index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                       static_cast<unsigned>(i / grid.x / grid.y)};
        start_shared_memory(dynamic_shared);
        thread = nullptr;
        run_block();
    }
}

}  // namespace kdfast::emulator
