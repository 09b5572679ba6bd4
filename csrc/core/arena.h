// One block of memory that grows and is kept: the buffers of a training step are laid out in it anew in each call, and
// allocated once.
#pragma once

#include <cstddef>

namespace kdfast {

class Arena {
  public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // At least `bytes`, aligned to a page. What it held before is lost where it has to grow. Null where there is no
    // such memory.
    char* reserve(size_t bytes);
    size_t size() const;

  private:
    char* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace kdfast
