// What differs between two GGUF files: for a tuned file and its base, scales and offsets alone, or
// weak columns.
// Both files are compared through their mappings, a piece at a time, so memory stays small.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/gguf/gguf.h"

namespace trimpot {

// Numbers (scales, offsets or the elements of a dense tensor) of file B against those of A.
// Relative: |b - a| / |a|, over numbers with a finite a that is not zero and a finite b.
struct ValueChange {
  std::uint64_t count = 0;
  std::uint64_t changed = 0;        // other bits
  std::uint64_t without_ratio = 0;  // changed, but from zero, or from or to no finite number
  double largest_absolute = 0;      // over all pairs of finite numbers
  double largest_relative = 0;
  double rms_relative = 0;  // over all `count`; those that have no ratio count as unchanged
};

struct TensorDifference {
  std::string name;
  ElementType type{};
  // Bytes that differ, by what they hold; dense: of tensors without blocks. Blocks that are only
  // carried (ElementTypeInfo::computable) count as codes whole, and have no values compared.
  std::uint64_t code_bytes = 0;
  std::uint64_t scale_bytes = 0;
  std::uint64_t offset_bytes = 0;  // and zero-points
  std::uint64_t weak_bytes = 0;    // weak columns of our own files
  std::uint64_t dense_bytes = 0;
  ValueChange scales, offsets, dense;  // dense: weak columns too
};

// A tensor with one name but two types or shapes: its contents are not compared.
struct FormDifference {
  std::string name;
  std::string a, b;  // "Q4_1 [576, 192]", columns first
};

struct MetadataDifference {
  std::string key;
  std::optional<std::string> a, b;  // shortened to one short line; nothing: the key is absent
};

struct FileDifference {
  std::uint64_t a_bytes = 0, b_bytes = 0;                // sizes of the files
  std::uint64_t a_header_bytes = 0, b_header_bytes = 0;  // before the tensor data
  bool same_header = false;
  bool same_size = false;
  std::uint64_t compared = 0;  // tensors of the same name, type and shape
  std::uint64_t code_bytes = 0, scale_bytes = 0, offset_bytes = 0, weak_bytes = 0,
                dense_bytes = 0;    // sums
  std::uint64_t padding_bytes = 0;  // that differ outside tensors; only if header and size agree
  std::vector<TensorDifference> tensors;  // those that differ, in the order of A
  std::vector<FormDifference> forms;
  std::vector<std::string> only_in_a, only_in_b;
  std::vector<MetadataDifference> metadata;

  // True if the files are the same, byte for byte.
  bool identical() const;
  // True if PEQA could have made B of A: header, size and codes agree, scales or offsets do not.
  bool only_scales_and_offsets() const;
  // The same for PEQA and QEFT: scales, offsets or weak columns do not.
  bool only_tuned() const;
};

// Nothing can fail: both files were checked when they were opened.
FileDifference diff_files(const gguf::File& a, const gguf::File& b);

// One line: "only scales and offsets differ: 210 of 272 tensors; codes, header and size are the
// same".
std::string summarize(const FileDifference& difference);

}  // namespace trimpot
