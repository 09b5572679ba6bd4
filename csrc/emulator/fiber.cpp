#include "emulator/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace kdfast::emulator {
namespace {

constexpr size_t kGuard = 65536, kStack = 128 << 10, kShift = 256;

}  // namespace

#if defined(__x86_64__) && !defined(KDFAST_PORTABLE_FIBERS)

// kdfast_switch_stack(void** save, void* to): keeps the callee-saved registers and the stack pointer in *save, and
// takes them up from `to`.
asm(R"(
.pushsection .text
.globl kdfast_switch_stack
.hidden kdfast_switch_stack
.type kdfast_switch_stack, @function
kdfast_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
.size kdfast_switch_stack, . - kdfast_switch_stack
.popsection
)");
extern "C" __attribute__((visibility("hidden"))) void kdfast_switch_stack(void** save, void* to);

void Fiber::jump(Fiber& from, Fiber& to) { kdfast_switch_stack(&from.top_, to.top_); }

#else

void Fiber::jump(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

#endif

Fiber::~Fiber() {
    if (memory_ != nullptr) munmap(memory_, kGuard + kStack);
}

void Fiber::start(void (*entry)(), int shift) {
    if (memory_ == nullptr) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* const memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        memory_ = static_cast<char*>(memory);
        mprotect(memory_, kGuard, PROT_NONE);
    }
    const size_t size = kStack - static_cast<size_t>(shift) * kShift;
#if defined(__x86_64__) && !defined(KDFAST_PORTABLE_FIBERS)
    // What kdfast_switch_stack takes from a stack: six registers and where to go on; above it the address that entry
    // would return to, so that the stack is aligned as behind a call.
    void** top = reinterpret_cast<void**>(memory_ + kGuard + size);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    top_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = memory_ + kGuard;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
}

bool Fiber::overflowed(const void* address) const {
    const char* a = static_cast<const char*>(address);
    return memory_ != nullptr && a >= memory_ && a < memory_ + kGuard;
}

}  // namespace kdfast::emulator
