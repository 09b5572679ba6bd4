#include "core/arena.h"

#include <cstdlib>

namespace kdfast {

Arena::~Arena() { std::free(data_); }

char* Arena::reserve(size_t bytes) {
    constexpr size_t kPage = 4096;
    if (bytes > size_) {
        std::free(data_);
        size_ = (bytes + bytes / 16 + kPage - 1) / kPage * kPage;  // batches of a little more do not grow it again
        data_ = static_cast<char*>(std::aligned_alloc(kPage, size_));
        if (data_ == nullptr) size_ = 0;
    }
    return data_;
}

size_t Arena::size() const { return size_; }

}  // namespace kdfast
