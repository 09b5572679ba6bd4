// A block's shared memory and what is known of each two bytes of it: who wrote and who read last, and since which
// barrier. From that, whatever the order in which threads happened to run, come errors for
//
//   - a read of what nobody has written, or of what a cp.async still brings;
//   - two accesses of different threads, one of them a write, with no barrier of both between them (a race);
//   - an index outside of an array, or a vector that is not aligned.
//
// Ordered are accesses on either side of a __syncthreads, and, within a warp, of a __syncwarp of both lanes (also by
// way of a third). Shuffles and votes order nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "emulator/bank_conflicts.h"
#include "emulator/machine.h"

namespace kdfast::emulator {

// What static arrays and the launch's memory may take together. More is to be asked for, as gpu_cuda.h's launch does
// where the launch's memory alone is more, and the GPU has a limit then.
constexpr size_t kSharedUnasked = 48 << 10, kMaxShared = 227 << 10;
size_t shared_limit(int compute_capability);

enum class Write : uint8_t { plain, atomic, copy };  // copy: a cp.async that has been issued

// Refuses a launch that asks for more than the GPU has.
void check_dynamic_shared(size_t dynamic, const Site& site);

// The block's memory becomes unknown: `dynamic` bytes, then static arrays as they are met.
void start_shared_memory(size_t dynamic);
void* dynamic_shared_memory(size_t offset, size_t bytes, const Site& site);
void* static_shared_memory(const void* key, size_t bytes, const Site& site);  // the same key gets the same memory

void note_read(const void* address, size_t bytes, const Site& site);
void note_write(const void* address, size_t bytes, const Site& site, Write how = Write::plain);
[[noreturn]] void fail_bounds(int64_t index, int64_t count, const Site& site);

// Lanes of `mask` have met in a __syncwarp.
void note_warp_barrier(Warp& warp, unsigned mask);

inline void check_aligned(const void* address, size_t bytes, const Site& site) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
        fail("misaligned access of " + std::to_string(bytes) + " bytes", site);
}

// What s[i] gives: a read where a value is wanted, a write where one is assigned.
template <class T>
class Element {
  public:
    Element(T* address, const Site& site) : address_(address), site_(site) {}
    Element(const Element&) = delete;
    operator T() && { return read(); }  // of a temporary only: `auto x = s[i]` would be a reference, not a value
    T operator=(T value) && {
        note_write(address_, sizeof(T), site_);
        count_access(Access::store, address_, sizeof(T), alignof(T), site_);
        return *address_ = value;
    }
    T operator=(Element&& other) && { return std::move(*this) = other.read(); }
    T operator+=(T value) && { return std::move(*this) = static_cast<T>(read() + value); }
    T operator-=(T value) && { return std::move(*this) = static_cast<T>(read() - value); }
    T operator*=(T value) && { return std::move(*this) = static_cast<T>(read() * value); }

  private:
    T read() const {
        note_read(address_, sizeof(T), site_);
        count_access(Access::load, address_, sizeof(T), alignof(T), site_);
        return *address_;
    }
    T* address_;
    Site site_;
};

// An index that knows its line.
struct Index {
    int64_t value;
    Site site;
    template <class I>
        requires std::is_integral_v<I>
    Index(I i, Site s = Site::current()) : value(static_cast<int64_t>(i)), site(s) {}
};

// The twin of a T* into shared memory.
template <class T>
class SharedPointer {
    static_assert(sizeof(T) % 2 == 0, "shared memory is watched in units of two bytes");
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    SharedPointer() = default;
    SharedPointer(T* first, int64_t count) : address_(first), first_(first), count_(count) {}

    Element<T> operator[](Index i) const { return Element<T>(at(i.value, 1, i.site), i.site); }
    SharedPointer operator+(int64_t i) const { return {address_ + i, first_, count_}; }
    SharedPointer operator-(int64_t i) const { return *this + -i; }
    SharedPointer& operator+=(int64_t i) { return *this = *this + i; }

    // The address of element i, of which `n` must exist.
    T* at(int64_t i, int64_t n, const Site& site) const {
        const int64_t index = address_ - first_ + i;
        if (index < 0 || index + n > count_) fail_bounds(index, count_, site);
        return address_ + i;
    }

  private:
    SharedPointer(T* address, T* first, int64_t count) : address_(address), first_(first), count_(count) {}
    T *address_ = nullptr, *first_ = nullptr;
    int64_t count_ = 0;
};

// Key: a type that is another one for each array.
template <class T, class Key>
SharedPointer<T> static_array(Key, size_t count, Site site = Site::current()) {
    static const char key = 0;
    return {static_cast<T*>(static_shared_memory(&key, count * sizeof(T), site)), static_cast<int64_t>(count)};
}

}  // namespace kdfast::emulator
