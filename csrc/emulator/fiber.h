// A stack of its own and a place to go on: how one operating-system thread runs the threads of a block in turn.
// Switching takes some nanoseconds on x86-64 (a few instructions) and ten times that elsewhere (ucontext).
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(KDFAST_PORTABLE_FIBERS)
#include <ucontext.h>
#endif

namespace kdfast::emulator {

class Fiber {
  public:
    Fiber() = default;
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next switch to this fiber calls entry, which must never return. `shift` differs between fibers that run in
    // turn: equal offsets within a page would share a few sets of the first-level cache.
    void start(void (*entry)(), int shift);

    // True where the address lies in the guard page below the stack or close to it.
    bool overflowed(const void* address) const;

    // Leaves `from`, which is running, for `to`.
    static void jump(Fiber& from, Fiber& to);

  private:
    char* memory_ = nullptr;  // a guard page, then the stack; none for the fiber that was there first
#if defined(__x86_64__) && !defined(KDFAST_PORTABLE_FIBERS)
    void* top_ = nullptr;
#else
    ucontext_t context_;
#endif
};

}  // namespace kdfast::emulator
