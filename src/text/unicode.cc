#include "text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

namespace trimpot::text {
namespace {

struct ClassRange {
  char32_t first;
  char32_t last;
  CharClass kind;
};

// Assigned after Unicode 15.0, which is what Debian 12's utf8proc 2.8 knows. Asked only for
// characters that utf8proc calls unassigned; found by asking `tokenizers` for every code point.
constexpr auto kLetter = CharClass::kLetter;
constexpr auto kNumber = CharClass::kNumber;
constexpr auto kPunctuation = CharClass::kPunctuation;
constexpr ClassRange kNewerRanges[] = {
    {0x1b4e, 0x1b4f, kPunctuation},
    {0x1b7f, 0x1b7f, kPunctuation},
    {0x1c89, 0x1c8a, kLetter},
    {0xa7cb, 0xa7cd, kLetter},
    {0xa7da, 0xa7dc, kLetter},
    {0x105c0, 0x105f3, kLetter},
    {0x10d40, 0x10d49, kNumber},
    {0x10d4a, 0x10d65, kLetter},
    {0x10d6e, 0x10d6e, kPunctuation},
    {0x10d6f, 0x10d85, kLetter},
    {0x10ec2, 0x10ec4, kLetter},
    {0x11380, 0x11389, kLetter},
    {0x1138b, 0x1138b, kLetter},
    {0x1138e, 0x1138e, kLetter},
    {0x11390, 0x113b5, kLetter},
    {0x113b7, 0x113b7, kLetter},
    {0x113d1, 0x113d1, kLetter},
    {0x113d3, 0x113d3, kLetter},
    {0x113d4, 0x113d5, kPunctuation},
    {0x113d7, 0x113d8, kPunctuation},
    {0x116d0, 0x116e3, kNumber},
    {0x11bc0, 0x11be0, kLetter},
    {0x11be1, 0x11be1, kPunctuation},
    {0x11bf0, 0x11bf9, kNumber},
    {0x11de0, 0x11de9, CharClass::kNewNumber},
    {0x13460, 0x143fa, kLetter},
    {0x16100, 0x1611d, kLetter},
    {0x16130, 0x16139, kNumber},
    {0x16d40, 0x16d6c, kLetter},
    {0x16d6d, 0x16d6f, kPunctuation},
    {0x16d70, 0x16d79, kNumber},
    {0x16ff4, 0x16ff6, CharClass::kNewNumber},
    {0x18cff, 0x18cff, kLetter},
    {0x1ccf0, 0x1ccf9, kNumber},
    {0x1e5d0, 0x1e5ed, kLetter},
    {0x1e5f0, 0x1e5f0, kLetter},
    {0x1e5f1, 0x1e5fa, kNumber},
    {0x1e5ff, 0x1e5ff, kPunctuation},
    {0x2ebf0, 0x2ee5d, kLetter},
};

struct Range {
  char32_t first;
  char32_t last;
};

// Combining marks that came after Unicode 9: NFC in `tokenizers` takes them for unassigned, so they
// are neither reordered nor composed. U+11930 is no mark but the second half of U+11938.
constexpr Range kUnknownToNfc[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
    {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x10d24, 0x10d27},
    {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85},
    {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0},
    {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42},
    {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1},
    {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x1e4ec, 0x1e4ef},
};

template <typename T>
const T* find_range(std::span<const T> sorted, char32_t code_point) {
  const auto next = std::upper_bound(sorted.begin(), sorted.end(), code_point,
                                     [](char32_t value, const T& r) { return value < r.first; });
  if (next == sorted.begin() || code_point > (next - 1)->last) return nullptr;
  return &*(next - 1);
}

CharClass slow_class(char32_t code_point) {
  // \s is the property White_Space, which is wider than the separators Z*: controls and U+0085.
  if ((code_point >= 9 && code_point <= 13) || code_point == 0x85) return CharClass::kSpace;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharClass::kLetter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharClass::kNumber;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return CharClass::kSpace;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return CharClass::kPunctuation;
    case UTF8PROC_CATEGORY_CN: {
      const ClassRange* range = find_range<ClassRange>(kNewerRanges, code_point);
      return range ? range->kind : CharClass::kOther;
    }
    default:
      return CharClass::kOther;
  }
}

constexpr char32_t kCached = 0x3000;  // 12 kB: every alphabet, and the punctuation of U+2000

std::array<CharClass, kCached> make_class_table() {
  std::array<CharClass, kCached> table;
  for (char32_t code_point = 0; code_point < kCached; ++code_point)
    table[code_point] = slow_class(code_point);
  return table;
}

// True when NFC can neither change this character nor join it to what stands before it.
bool starts_afresh(char32_t code_point) {
  if (code_point < 0x300) return true;
  const utf8proc_property_t* property =
      utf8proc_get_property(static_cast<utf8proc_int32_t>(code_point));
  const bool conjoining_jamo = code_point >= 0x1160 && code_point <= 0x11ff;
  // In utf8proc's tables comb_index 0x8000 and above marks the second half of a composition.
  const bool second = property->comb_index != UINT16_MAX && property->comb_index >= 0x8000;
  return property->combining_class == 0 && property->decomp_seqindex == UINT16_MAX && !second &&
         !conjoining_jamo;
}

// `segment` is valid UTF-8. The canonical order is made here: utf8proc's own is an insertion sort,
// minutes for a megabyte of combining marks in the wrong order.
void append_composed(std::string_view segment, std::vector<utf8proc_int32_t>& points,
                     std::string& out) {
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  constexpr std::size_t kLongest = 8;  // the longest canonical decomposition has 4
  points.clear();
  for (std::size_t position = 0; position < segment.size();) {
    const CodePoint code_point = decode_utf8(segment, position);
    position += code_point.bytes;
    const std::size_t size = points.size();
    points.resize(size + kLongest);
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point.value), &points[size],
                                kLongest, kOptions, nullptr);
    points.resize(size +
                  static_cast<std::size_t>(std::clamp<utf8proc_ssize_t>(count, 0, kLongest)));
  }
  const auto order = [](utf8proc_int32_t point) {
    return utf8proc_get_property(point)->combining_class;
  };
  for (auto begin = points.begin(); begin != points.end();) {
    const auto is_starter = [&](utf8proc_int32_t point) { return order(point) == 0; };
    begin = std::find_if_not(begin, points.end(), is_starter);
    const auto end = std::find_if(begin, points.end(), is_starter);
    std::stable_sort(begin, end, [&](utf8proc_int32_t left, utf8proc_int32_t right) {
      return order(left) < order(right);
    });
    begin = end;
  }
  const utf8proc_ssize_t length = utf8proc_normalize_utf32(
      points.data(), static_cast<utf8proc_ssize_t>(points.size()), kOptions);
  for (utf8proc_ssize_t index = 0; index < length; ++index)
    append_utf8(out, static_cast<char32_t>(points[static_cast<std::size_t>(index)]));
}

}  // namespace

CodePoint decode_utf8(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t index) {
    return static_cast<unsigned char>(text[position + index]);
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, true};
  constexpr CodePoint kInvalid{0xfffd, 1, false};
  const std::uint32_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() - position < length) return kInvalid;
  char32_t value = lead & (0x7fu >> length);
  for (std::uint32_t index = 1; index < length; ++index) {
    if ((byte(index) & 0xc0) != 0x80) return kInvalid;
    value = value << 6 | (byte(index) & 0x3fu);
  }
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kSmallest[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
    return kInvalid;
  return {value, length, true};
}

void append_utf8(std::string& text, char32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(length));
}

CharClass char_class(char32_t code_point) {
  static const std::array<CharClass, kCached> table = make_class_table();
  return code_point < kCached ? table[code_point] : slow_class(code_point);
}

std::string_view normalize_nfc(std::string_view text, std::string& storage) {
  // Only segments "a character and what may join it" go through utf8proc; the rest is copied.
  storage.clear();
  std::vector<utf8proc_int32_t> points;
  std::size_t copied = 0;   // text up to here is in `storage`
  std::size_t segment = 0;  // start of the last character that starts afresh
  bool joined = false;      // something after `segment` may join it
  const auto close = [&](std::size_t end) {
    if (joined) {
      storage.append(text, copied, segment - copied);
      append_composed(text.substr(segment, end - segment), points, storage);
      copied = end;
    }
    joined = false;
    segment = end;
  };
  for (std::size_t position = 0; position < text.size();) {
    const CodePoint code_point = decode_utf8(text, position);
    const bool inert =
        !code_point.valid || (code_point.value >= 0x300 &&
                              find_range<Range>(kUnknownToNfc, code_point.value) != nullptr);
    if (inert || starts_afresh(code_point.value))
      close(position);
    else
      joined = true;
    position += code_point.bytes;
    if (inert) segment = position;  // nothing joins it, and utf8proc must not see it
  }
  close(text.size());
  if (copied == 0) return text;
  storage.append(text, copied, text.size() - copied);
  return storage;
}

}  // namespace trimpot::text
