// Zeroed, 64-byte aligned memory for kernels. Large buffers sit on 2 MiB boundaries and ask for
// huge pages: under nested paging a TLB miss costs more than the data.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "sys/arena.h"

namespace trimpot {

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count) { resize(count); }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        in_arena_(std::exchange(other.in_arena_, false)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(in_arena_, other.in_arena_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { release(); }

  // New zeroed contents of `count` elements; the old ones are gone.
  void resize(std::size_t count) {
    release();
    if (count == 0) return;
    const std::size_t bytes = count * sizeof(T);
    const std::size_t boundary = bytes >= kHugeFrom ? kHuge : 64;
    // Rounded up so that kernels may read a whole vector at the end.
    const std::size_t rounded = (bytes + 64 + boundary - 1) / boundary * boundary;
    void* memory = std::aligned_alloc(boundary, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    if (boundary == kHuge) ::madvise(memory, rounded, MADV_HUGEPAGE);
    std::memset(memory, 0, boundary == kHuge ? bytes : rounded);
    data_ = static_cast<T*>(memory);
    size_ = count;
  }
  // Grows to at least `count` elements; contents are lost when it grows.
  void reserve(std::size_t count) {
    if (count > size_) resize(count);
  }
  // The same with memory of an arena (null: none), which must outlive this buffer, unless the
  // buffer is to have huge pages of its own.
  void reserve(std::size_t count, Arena* arena) {
    if (arena == nullptr || count * sizeof(T) >= kHugeFrom) return reserve(count);
    if (count <= size_) return;
    release();
    data_ = static_cast<T*>(arena->take(count * sizeof(T)));
    size_ = count;
    in_arena_ = true;
  }

  // Moves the contents to memory that the arena owns, if they are not on huge pages yet; the arena
  // must outlive this buffer.
  void move_to(Arena& arena) {
    if (size_ == 0 || in_arena_ || size_ * sizeof(T) >= kHugeFrom) return;
    const std::size_t size = size_;
    auto* moved = static_cast<T*>(arena.take(size * sizeof(T)));
    std::memcpy(moved, data_, size * sizeof(T));
    release();
    data_ = moved;
    size_ = size;
    in_arena_ = true;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](std::size_t index) { return data_[index]; }
  const T& operator[](std::size_t index) const { return data_[index]; }
  std::span<T> span() { return {data_, size_}; }
  std::span<const T> span() const { return {data_, size_}; }

 private:
  static constexpr std::size_t kHuge = std::size_t{2} << 20;
  static constexpr std::size_t kHugeFrom = 2 * kHuge;

  void release() {
    if (in_arena_)
      Arena::discard(data_, size_ * sizeof(T));
    else
      std::free(data_);
    data_ = nullptr;
    size_ = 0;
    in_arena_ = false;
  }
  T* data_ = nullptr;
  std::size_t size_ = 0;
  bool in_arena_ = false;
};

}  // namespace trimpot
