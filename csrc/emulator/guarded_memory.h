// Memory for a kernel's global tensors between pages that nobody may touch, so that an access outside of one is an
// error at once.
#pragma once

#include <cstddef>
#include <string>

#include <signal.h>

namespace kdfast::emulator {

class GuardedMemory {
  public:
    // at_end: the block ends where the guard page begins (but for what aligns its first byte to 16); else it begins
    // where one ends. What belongs to its pages beyond it holds a pattern.
    GuardedMemory(size_t bytes, bool at_end);
    ~GuardedMemory();
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;

    void* data() const { return data_; }
    size_t size() const { return size_; }

    void make_read_only();

    // False where somebody wrote beyond the block, within its pages.
    bool is_intact() const;

  private:
    char *pages_, *data_;
    size_t size_, pages_size_;
};

// Where an address lies among the blocks of guarded memory, in words.
std::string locate(const void* address);

// While it lives, a memory fault calls handle(address), which must not return.
class FaultHandler {
  public:
    explicit FaultHandler(void (*handle)(const void*));
    ~FaultHandler();
    FaultHandler(const FaultHandler&) = delete;
    FaultHandler& operator=(const FaultHandler&) = delete;

  private:
    struct sigaction old_segv_, old_bus_;
    stack_t old_stack_;
};

}  // namespace kdfast::emulator
