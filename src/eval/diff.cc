#include "eval/diff.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "format/ggml_blocks.h"
#include "io/printable.h"

namespace trimpot {
namespace {

using Bytes = std::span<const std::byte>;

// Pages are compared and let go in pieces of about so many bytes.
constexpr std::size_t kPiece = std::size_t{1} << 20;

bool same(Bytes a, Bytes b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

std::uint64_t differing_bytes(const std::byte* a, const std::byte* b, std::size_t count) {
  std::uint64_t differing = 0;
  for (std::size_t i = 0; i < count; ++i) differing += a[i] != b[i];
  return differing;
}

// A ValueChange in the making.
class Changes {
 public:
  void add(float a, float b, bool changed) {
    ++result_.count;
    result_.changed += changed;
    const bool finite = std::isfinite(a) && std::isfinite(b);
    const double difference =
        finite ? std::fabs(static_cast<double>(b) - static_cast<double>(a)) : 0;
    result_.largest_absolute = std::max(result_.largest_absolute, difference);
    if (!finite || a == 0.0f) {
      result_.without_ratio += changed;
      return;
    }
    const double ratio = difference / std::fabs(static_cast<double>(a));
    result_.largest_relative = std::max(result_.largest_relative, ratio);
    squares_ += ratio * ratio;
  }
  void add_same(std::uint64_t count) { result_.count += count; }
  ValueChange result() const {
    ValueChange result = result_;
    if (result.count > 0)
      result.rms_relative = std::sqrt(squares_ / static_cast<double>(result.count));
    return result;
  }

 private:
  ValueChange result_;
  double squares_ = 0;
};

float element(ElementType type, const std::byte* at) {
  if (type == ElementType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  const f16 bits = block_f16(at, 0);
  return type == ElementType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

enum class Holds { kBlocks, kCodes, kScales, kOffsets, kWeak, kDense };

// What a tensor holds; in our own files (model/stored.h) its name says it.
Holds holds(std::string_view name, ElementType type) {
  if (element_type_info(type).block_elements > 1) return Holds::kBlocks;
  for (const char* suffix : {".codes", ".absmax"})
    if (name.ends_with(suffix)) return Holds::kCodes;
  for (const char* suffix : {".scales", ".absmax_scales"})
    if (name.ends_with(suffix)) return Holds::kScales;
  for (const char* suffix : {".zeros", ".offsets", ".absmax_offset"})
    if (name.ends_with(suffix)) return Holds::kOffsets;
  if (name.ends_with(".weak")) return Holds::kWeak;
  return Holds::kDense;
}

// Compares the blocks or elements of a tensor that has one type and shape in both files.
class TensorComparison {
 public:
  TensorComparison(std::string name, ElementType type)
      : format_(block_format(type)),
        unit_(static_cast<std::size_t>(element_type_info(type).block_bytes)),
        holds_(holds(name, type)),
        computable_(element_type_info(type).computable) {
    result_.name = std::move(name);
    result_.type = type;
  }

  // Bytes that are compared at a time: whole blocks.
  std::size_t piece() const { return kPiece / unit_ * unit_; }

  void add(Bytes a, Bytes b) {
    if (same(a, b)) {
      if (computable_) scales_.add_same(a.size() / unit_);
      offsets_.add_same(a.size() / unit_);
      return;
    }
    for (std::size_t at = 0; at < a.size(); at += unit_) {
      if (format_.bits > 0) {
        add_block(a.data() + at, b.data() + at);
      } else {
        const std::uint64_t differing = differing_bytes(a.data() + at, b.data() + at, unit_);
        bytes() += differing;
        if (!computable_) continue;  // what the bytes mean is not known here
        scales_.add(element(result_.type, a.data() + at), element(result_.type, b.data() + at),
                    differing > 0);
      }
    }
  }

  TensorDifference result() const {
    TensorDifference result = result_;
    (format_.bits > 0 || holds_ == Holds::kScales ? result.scales
     : holds_ == Holds::kOffsets                  ? result.offsets
                                                  : result.dense) = scales_.result();
    if (format_.bits > 0 && format_.offset_offset >= 0) result.offsets = offsets_.result();
    return result;
  }

 private:
  std::uint64_t& bytes() {
    switch (holds_) {
      case Holds::kScales:
        return result_.scale_bytes;
      case Holds::kOffsets:
        return result_.offset_bytes;
      case Holds::kWeak:
        return result_.weak_bytes;
      case Holds::kDense:
        return result_.dense_bytes;
      default:
        return result_.code_bytes;
    }
  }
  void add_number(const std::byte* a, const std::byte* b, int at, std::uint64_t& bytes,
                  Changes& changes) {
    const f16 old = block_f16(a, at), now = block_f16(b, at);
    bytes += differing_bytes(a + at, b + at, sizeof(f16));
    changes.add(f16_to_f32(old), f16_to_f32(now), old != now);
  }
  // In every block type the codes come behind scale and offset (Q5's fifth bits are codes too).
  void add_block(const std::byte* a, const std::byte* b) {
    const int first = std::max(format_.scale_offset, format_.offset_offset) + 2;
    add_number(a, b, format_.scale_offset, result_.scale_bytes, scales_);
    if (format_.offset_offset >= 0)
      add_number(a, b, format_.offset_offset, result_.offset_bytes, offsets_);
    const auto count = static_cast<std::size_t>(format_.bytes - first);
    if (std::memcmp(a + first, b + first, count) != 0)
      result_.code_bytes += differing_bytes(a + first, b + first, count);
  }

  BlockFormat format_;
  std::size_t unit_;
  Holds holds_;
  bool computable_;
  TensorDifference result_;
  Changes scales_;  // or, without blocks, the elements of whatever the tensor holds
  Changes offsets_;
};

// Everything between and behind the tensors; both files have the same layout.
std::uint64_t differing_padding(const gguf::File& a, const gguf::File& b) {
  std::uint64_t differing = 0, from = a.data_offset();
  const auto compare_until = [&](std::uint64_t end) {
    if (from < end)
      differing += differing_bytes(a.bytes().data() + from, b.bytes().data() + from, end - from);
  };
  for (const gguf::TensorInfo& tensor : a.tensors()) {
    compare_until(tensor.offset);
    from = tensor.offset + tensor.bytes;
  }
  compare_until(a.file_bytes());
  return differing;
}

std::string shorten(std::string_view text) {
  constexpr std::size_t kShown = 48;
  return fmt::format("\"{}{}\"", printable(text.substr(0, kShown)),
                     text.size() > kShown ? "..." : "");
}

std::string show(const gguf::Scalar& scalar) {
  return std::visit(
      [](const auto& value) {
        if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string>)
          return shorten(value);
        else
          return fmt::format("{}", value);
      },
      scalar);
}

// Whether two values are the same, and if not, what the two differ in.
std::optional<MetadataDifference> compare(const std::string& key, const gguf::Value& a,
                                          const gguf::Value& b) {
  const auto size_of = [](const gguf::Value& value) {
    return fmt::format("an array of {} {}", value.count,
                       value.element_type == gguf::ValueType::kString ? "strings" : "numbers");
  };
  const auto show_any = [&](const gguf::Value& value) {
    return value.type == gguf::ValueType::kArray ? size_of(value) : show(value.scalar);
  };
  if (a.type == b.type && a.type != gguf::ValueType::kArray) {
    // Numbers by their bits: NaN equals itself, and -0 is not 0.
    const auto *x = std::get_if<double>(&a.scalar), *y = std::get_if<double>(&b.scalar);
    const bool equal = x && y ? std::bit_cast<std::uint64_t>(*x) == std::bit_cast<std::uint64_t>(*y)
                              : a.scalar == b.scalar;
    if (equal) return std::nullopt;
    std::string shown_a = show(a.scalar), shown_b = show(b.scalar);
    if (shown_a == shown_b) {  // long texts that differ behind what is shown
      shown_a += fmt::format(" ({} bytes)", std::get<std::string>(a.scalar).size());
      shown_b += fmt::format(" ({} bytes, other text)", std::get<std::string>(b.scalar).size());
    }
    return MetadataDifference{key, shown_a, shown_b};
  }
  if (a.type != b.type || a.element_type != b.element_type || a.count != b.count)
    return MetadataDifference{key, show_any(a), show_any(b)};
  if (a.element_type == gguf::ValueType::kString) {
    for (std::size_t i = 0; i < a.strings.size(); ++i)
      if (a.strings[i] != b.strings[i])
        return MetadataDifference{
            key, fmt::format("{}; element {} is {}", size_of(a), i, shorten(a.strings[i])),
            fmt::format("element {} is {}", i, shorten(b.strings[i]))};
    return std::nullopt;
  }
  if (same(a.raw, b.raw)) return std::nullopt;
  const std::size_t width = a.raw.size() / a.count;
  const std::size_t first =
      static_cast<std::size_t>(std::mismatch(a.raw.begin(), a.raw.end(), b.raw.begin()).first -
                               a.raw.begin()) /
      width;
  return MetadataDifference{key, size_of(a),
                            fmt::format("other numbers from element {} on", first)};
}

void compare_metadata(const gguf::File& a, const gguf::File& b, FileDifference& out) {
  const auto describe = [](const gguf::Value& value) {
    return value.type == gguf::ValueType::kArray ? fmt::format("an array of {}", value.count)
                                                 : show(value.scalar);
  };
  for (const auto& [key, value] : a.metadata()) {
    const gguf::Value* other = b.find(key);
    if (other == nullptr) {
      out.metadata.push_back({key, describe(value), std::nullopt});
    } else if (auto difference = compare(key, value, *other)) {
      out.metadata.push_back(std::move(*difference));
    }
  }
  for (const auto& [key, value] : b.metadata())
    if (a.find(key) == nullptr) out.metadata.push_back({key, std::nullopt, describe(value)});
}

std::string form(const gguf::TensorInfo& tensor) {
  return fmt::format("{} [{}]", element_type_info(tensor.type).name, fmt::join(tensor.shape, ", "));
}

}  // namespace

bool FileDifference::identical() const {
  return same_header && same_size && tensors.empty() && padding_bytes == 0;
}

bool FileDifference::only_tuned() const {
  return same_header && same_size && padding_bytes == 0 && code_bytes == 0 && dense_bytes == 0 &&
         scale_bytes + offset_bytes + weak_bytes > 0;
}

bool FileDifference::only_scales_and_offsets() const { return only_tuned() && weak_bytes == 0; }

FileDifference diff_files(const gguf::File& a, const gguf::File& b) {
  FileDifference out;
  out.a_bytes = a.file_bytes();
  out.b_bytes = b.file_bytes();
  out.same_size = out.a_bytes == out.b_bytes;
  // A file without tensors may end before its data would begin.
  out.a_header_bytes = std::min(a.data_offset(), a.file_bytes());
  out.b_header_bytes = std::min(b.data_offset(), b.file_bytes());
  out.same_header = same(a.bytes().first(out.a_header_bytes), b.bytes().first(out.b_header_bytes));
  if (!out.same_header) compare_metadata(a, b, out);

  for (const gguf::TensorInfo& tensor : a.tensors()) {
    const gguf::TensorInfo* other = b.find_tensor(tensor.name);
    if (other == nullptr) {
      out.only_in_a.push_back(tensor.name);
      continue;
    }
    if (tensor.type != other->type || tensor.shape != other->shape) {
      out.forms.push_back({tensor.name, form(tensor), form(*other)});
      continue;
    }
    ++out.compared;
    TensorComparison comparison(tensor.name, tensor.type);
    const Bytes x = a.data(tensor), y = b.data(*other);
    for (std::size_t at = 0; at < x.size(); at += comparison.piece()) {
      const std::size_t size = std::min(comparison.piece(), x.size() - at);
      comparison.add(x.subspan(at, size), y.subspan(at, size));
      a.release(x.subspan(at, size));
      b.release(y.subspan(at, size));
    }
    TensorDifference result = comparison.result();
    if (result.code_bytes + result.scale_bytes + result.offset_bytes + result.weak_bytes +
            result.dense_bytes ==
        0)
      continue;
    out.code_bytes += result.code_bytes;
    out.scale_bytes += result.scale_bytes;
    out.offset_bytes += result.offset_bytes;
    out.weak_bytes += result.weak_bytes;
    out.dense_bytes += result.dense_bytes;
    out.tensors.push_back(std::move(result));
  }
  for (const gguf::TensorInfo& tensor : b.tensors())
    if (a.find_tensor(tensor.name) == nullptr) out.only_in_b.push_back(tensor.name);
  if (out.same_header && out.same_size) out.padding_bytes = differing_padding(a, b);
  return out;
}

std::string summarize(const FileDifference& d) {
  if (d.identical()) return "the files are identical";
  const auto join = [](const std::vector<std::string_view>& words) {
    std::string text;
    for (std::size_t i = 0; i < words.size(); ++i)
      text += fmt::format("{}{}", i == 0 ? "" : i + 1 == words.size() ? " and " : ", ", words[i]);
    return text;
  };
  std::vector<std::string_view> differ, agree;
  if (d.scale_bytes > 0) differ.push_back("scales");
  const auto holds_zeros = [](const TensorDifference& t) { return t.name.ends_with(".zeros"); };
  const auto other_offsets = [&](const TensorDifference& t) {
    return t.offset_bytes > 0 && !holds_zeros(t);
  };
  if (std::any_of(d.tensors.begin(), d.tensors.end(), other_offsets)) differ.push_back("offsets");
  if (std::any_of(d.tensors.begin(), d.tensors.end(), holds_zeros)) differ.push_back("zero-points");
  if (d.weak_bytes > 0) differ.push_back("weak columns");
  const bool same_set = d.forms.empty() && d.only_in_a.empty() && d.only_in_b.empty();
  if (d.code_bytes > 0) {
    differ.push_back("codes");
  } else if (same_set) {
    agree.push_back("codes");
  }
  if (d.dense_bytes > 0) differ.push_back("dense tensors");
  if (d.padding_bytes > 0) differ.push_back("bytes between tensors");
  (d.same_header ? agree : differ).push_back("header");
  (d.same_size ? agree : differ).push_back("size");
  const auto is_one = [](const std::vector<std::string_view>& words) {
    return words.size() == 1 && !words[0].ends_with("s");
  };
  std::string text = fmt::format("{}{} {}", d.only_tuned() ? "only " : "", join(differ),
                                 is_one(differ) ? "differs" : "differ");
  if (!d.tensors.empty())
    text += fmt::format(": {} of {} tensors", d.tensors.size(),
                        d.compared + d.forms.size() + d.only_in_a.size());
  if (!same_set)
    text += fmt::format("; tensors of another type or shape: {}, only in A: {}, only in B: {}",
                        d.forms.size(), d.only_in_a.size(), d.only_in_b.size());
  if (!agree.empty())
    text += fmt::format("; {} {} the same", join(agree), is_one(agree) ? "is" : "are");
  return text;
}

}  // namespace trimpot
