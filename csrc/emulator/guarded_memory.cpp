#include "emulator/guarded_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "emulator/machine.h"

namespace kdfast::emulator {
namespace {

constexpr size_t kAlignment = 16, kSignalStack = 65536;
constexpr unsigned char kPattern = 0xff;  // NaN to whoever reads it

std::vector<const GuardedMemory*> blocks;
void (*handle_fault)(const void*);

size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void on_signal(int number, siginfo_t* info, void*) {
    if (thread != nullptr) handle_fault(info->si_addr);  // outside of kernels a fault is a fault
    signal(number, SIG_DFL);
}

}  // namespace

GuardedMemory::GuardedMemory(size_t bytes, bool at_end) : size_(bytes) {
    const size_t page = page_size(), aligned = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    pages_size_ = std::max(page, (aligned + page - 1) / page * page);
    void* const all = mmap(nullptr, pages_size_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<char*>(all) + page;
    mprotect(pages_, pages_size_, PROT_READ | PROT_WRITE);
    std::memset(pages_, kPattern, pages_size_);
    data_ = at_end ? pages_ + pages_size_ - aligned : pages_;
    blocks.push_back(this);
}

GuardedMemory::~GuardedMemory() {
    std::erase(blocks, this);
    munmap(pages_ - page_size(), pages_size_ + 2 * page_size());
}

void GuardedMemory::make_read_only() { mprotect(pages_, pages_size_, PROT_READ); }

bool GuardedMemory::is_intact() const {
    const auto is_pattern = [](char c) { return static_cast<unsigned char>(c) == kPattern; };
    return std::all_of(pages_, data_, is_pattern) && std::all_of(data_ + size_, pages_ + pages_size_, is_pattern);
}

std::string locate(const void* address) {
    const char* const a = static_cast<const char*>(address);
    char text[160];
    for (const GuardedMemory* b : blocks) {
        const char *const first = static_cast<const char*>(b->data()), *const end = first + b->size();
        if (a < first - 2 * page_size() || a >= end + 2 * page_size()) continue;
        if (a >= first && a < end)
            std::snprintf(text, sizeof text, "a write to byte %td of a read-only tensor of %zu bytes", a - first,
                          b->size());
        else
            std::snprintf(text, sizeof text, "%td bytes %s a tensor of %zu bytes", a < first ? first - a : a - end,
                          a < first ? "before the beginning of" : "beyond the end of", b->size());
        return text;
    }
    std::snprintf(text, sizeof text, "address %p", address);
    return text;
}

FaultHandler::FaultHandler(void (*handle)(const void*)) {
    alignas(16) static char memory[kSignalStack];  // a fiber that ran out of stack has none left for the handler
    handle_fault = handle;
    stack_t stack{};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;  // the handler is left by a jump: the signal stays open
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
}

FaultHandler::~FaultHandler() {
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaltstack(&old_stack_, nullptr);
}

}  // namespace kdfast::emulator
