#include <algorithm>
#include <bit>
#include <cstring>

#include "io/gguf/gguf.h"
#include "io/gguf/layout.h"
#include "io/printable.h"

namespace trimpot::gguf {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in memory");

// Real headers are below 50 MiB (a large vocabulary and an embedded tokenizer.json), real models
// have some 10^4 tensors. These limits keep a hostile sparse file from filling the memory.
constexpr std::uint64_t kMaxHeaderBytes = 256u << 20;
constexpr std::uint64_t kMaxEntries = 1u << 20;

constexpr std::string_view kDamaged = "the file is damaged; download it again";
constexpr std::string_view kCutShort = "the file is cut short or damaged; download it again";

// Walks through the header. Every read is checked against what is left, and every message names
// the file, the subject (a key or a tensor) and the byte at which the field in question starts.
class Cursor {
 public:
  Cursor(const std::string& path, std::span<const std::byte> file)
      : path_(path),
        bytes_(file.first(std::min<std::uint64_t>(file.size(), kMaxHeaderBytes))),
        is_capped_(bytes_.size() < file.size()) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return bytes_.size() - position_; }
  void about(std::string subject) { subject_ = std::move(subject); }

  template <typename... Args>
  tl::unexpected<Error> error(fmt::format_string<Args...> format, Args&&... args) const {
    return fail("{}: {} (byte {}): {}", path_, subject_, field_,
                fmt::format(format, std::forward<Args>(args)...));
  }

  template <typename T>
  Result<T> number() {
    field_ = position_;
    if (left() < sizeof(T)) return too_short(sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  // A u64 length and as many bytes; the view is into the mapping.
  Result<std::string_view> text() {
    TRIMPOT_TRY(const std::uint64_t length, number<std::uint64_t>());
    if (length > left()) return too_short(length);
    const auto* data = reinterpret_cast<const char*>(bytes_.data() + position_);
    position_ += length;
    return std::string_view(data, length);
  }

  Result<std::span<const std::byte>> block(std::uint64_t length) {
    if (length > left()) return too_short(length);
    const auto part = bytes_.subspan(position_, length);
    position_ += length;
    return part;
  }

 private:
  tl::unexpected<Error> too_short(std::uint64_t needed) const {
    if (is_capped_ && needed <= kMaxHeaderBytes)
      return error("the header is longer than {} MiB: {}", kMaxHeaderBytes >> 20, kDamaged);
    return error("{} bytes are needed here and {} are left: {}", needed, left(), kCutShort);
  }

  const std::string& path_;
  std::span<const std::byte> bytes_;
  bool is_capped_;
  std::uint64_t position_ = 0;
  std::uint64_t field_ = 0;  // where the field that is being read starts
  std::string subject_ = "header";
};

struct Preamble {
  std::uint32_t version = 0;
  std::uint64_t tensors = 0;
  std::uint64_t entries = 0;
};

Status check_magic(const std::string& path, std::span<const std::byte> file) {
  const std::string_view start(reinterpret_cast<const char*>(file.data()),
                               std::min<std::size_t>(file.size(), 24));
  if (start.starts_with("GGUF")) return {};
  if (start.starts_with("version https://git-lfs"))
    return fail("{}: only a Git LFS pointer, not the model itself; fetch it with: git lfs pull",
                path);
  return fail(
      "{}: not a GGUF file (byte 0: it starts with \"{}\", not \"GGUF\"); convert other formats "
      "with "
      "llama.cpp's convert_hf_to_gguf.py",
      path, printable(start.substr(0, 4)));
}

Result<Preamble> read_preamble(Cursor& cursor) {
  Preamble preamble;
  TRIMPOT_TRY_VOID(cursor.number<std::uint32_t>());  // the magic, checked before
  TRIMPOT_TRY(preamble.version, cursor.number<std::uint32_t>());
  if (preamble.version == 1)
    return cursor.error(
        "GGUF version 1 is not read (2 and 3 are); convert the model again with a current "
        "llama.cpp");
  if (preamble.version != 0 && (preamble.version & 0xffffu) == 0)
    return cursor.error(
        "the file is for big-endian machines; convert it with gguf-py's gguf_convert_endian.py");
  if (preamble.version != 2 && preamble.version != 3)
    return cursor.error("GGUF version {} is not known (2 and 3 are); look for a newer trimpot",
                        preamble.version);
  // The smallest tensor info has 8+1+4+4+8 bytes, the smallest metadata entry 8+1+4+1.
  TRIMPOT_TRY(preamble.tensors, cursor.number<std::uint64_t>());
  if (preamble.tensors > std::min(cursor.left() / 25, kMaxEntries))
    return cursor.error("{} tensors are more than {} or than the {} bytes that follow describe: {}",
                        preamble.tensors, kMaxEntries, cursor.left(), kCutShort);
  TRIMPOT_TRY(preamble.entries, cursor.number<std::uint64_t>());
  if (preamble.entries > std::min(cursor.left() / 14, kMaxEntries))
    return cursor.error(
        "{} metadata entries are more than {} or than the {} bytes that follow hold: {}",
        preamble.entries, kMaxEntries, cursor.left(), kCutShort);
  return preamble;
}

template <typename Wide, typename Stored>
Result<Scalar> read_widened(Cursor& cursor) {
  TRIMPOT_TRY(const Stored value, cursor.number<Stored>());
  return Scalar(static_cast<Wide>(value));
}

Result<Scalar> read_scalar(Cursor& cursor, ValueType type) {
  switch (type) {
    case ValueType::kU8:
      return read_widened<std::uint64_t, std::uint8_t>(cursor);
    case ValueType::kU16:
      return read_widened<std::uint64_t, std::uint16_t>(cursor);
    case ValueType::kU32:
      return read_widened<std::uint64_t, std::uint32_t>(cursor);
    case ValueType::kU64:
      return read_widened<std::uint64_t, std::uint64_t>(cursor);
    case ValueType::kI8:
      return read_widened<std::int64_t, std::int8_t>(cursor);
    case ValueType::kI16:
      return read_widened<std::int64_t, std::int16_t>(cursor);
    case ValueType::kI32:
      return read_widened<std::int64_t, std::int32_t>(cursor);
    case ValueType::kI64:
      return read_widened<std::int64_t, std::int64_t>(cursor);
    case ValueType::kF32:
      return read_widened<double, float>(cursor);
    case ValueType::kF64:
      return read_widened<double, double>(cursor);
    case ValueType::kBool: {
      TRIMPOT_TRY(const std::uint8_t value, cursor.number<std::uint8_t>());
      if (value > 1) return cursor.error("a bool is {}, not 0 or 1: {}", value, kDamaged);
      return Scalar(value == 1);
    }
    case ValueType::kString: {
      TRIMPOT_TRY(const std::string_view value, cursor.text());
      return Scalar(std::string(value));
    }
    case ValueType::kArray:
      break;
  }
  return cursor.error("not a single value: {}", kDamaged);
}

Status read_array(Cursor& cursor, Value& value) {
  TRIMPOT_TRY(const std::uint32_t element, cursor.number<std::uint32_t>());
  if (!is_known_value_type(element))
    return cursor.error("array of the unknown value type {} (known: 0 to 12): {}", element,
                        kDamaged);
  value.element_type = static_cast<ValueType>(element);
  if (value.element_type == ValueType::kArray)
    return cursor.error("an array of arrays, which GGUF does not allow: {}", kDamaged);
  TRIMPOT_TRY(value.count, cursor.number<std::uint64_t>());
  const bool is_text = value.element_type == ValueType::kString;
  const std::uint64_t width =
      is_text ? 8 : value_width(value.element_type);  // a string: its length
  if (value.count > cursor.left() / width)
    return cursor.error("{} elements of type {} cannot fit in the {} bytes that follow: {}",
                        value.count, value_type_name(value.element_type), cursor.left(), kCutShort);
  if (is_text) {
    value.strings.reserve(value.count);
    for (std::uint64_t i = 0; i < value.count; ++i) {
      TRIMPOT_TRY(const std::string_view text, cursor.text());
      value.strings.push_back(text);
    }
    return {};
  }
  TRIMPOT_TRY(value.raw, cursor.block(value.count * width));
  if (value.element_type == ValueType::kBool)
    for (const std::byte byte : value.raw)
      if (byte > std::byte{1})
        return cursor.error("a bool of the array is {}, not 0 or 1: {}", std::to_integer<int>(byte),
                            kDamaged);
  return {};
}

Result<Value> read_value(Cursor& cursor) {
  TRIMPOT_TRY(const std::uint32_t type, cursor.number<std::uint32_t>());
  if (!is_known_value_type(type))
    return cursor.error("value type {} is not known (known: 0 to 12): {}", type, kDamaged);
  Value value;
  value.type = static_cast<ValueType>(type);
  if (value.type == ValueType::kArray) {
    TRIMPOT_TRY_VOID(read_array(cursor, value));
  } else {
    TRIMPOT_TRY(value.scalar, read_scalar(cursor, value.type));
  }
  return value;
}

// `offset` is left as it is in the file: from the start of the tensor data.
Result<TensorInfo> read_tensor_info(Cursor& cursor, std::uint64_t index) {
  cursor.about(fmt::format("tensor number {}", index));
  TensorInfo tensor;
  TRIMPOT_TRY(const std::string_view name, cursor.text());
  if (name.empty()) return cursor.error("it has no name: {}", kDamaged);
  if (name.size() > kLongestTensorName)
    return cursor.error("its name \"{}\" has {} bytes, and GGUF allows {}: {}", printable(name),
                        name.size(), kLongestTensorName, kDamaged);
  tensor.name = name;
  cursor.about(fmt::format("tensor \"{}\"", printable(name)));
  TRIMPOT_TRY(const std::uint32_t rank, cursor.number<std::uint32_t>());
  if (rank > kMaxRank)
    return cursor.error("{} axes, and GGUF has at most {}: {}", rank, kMaxRank, kDamaged);
  tensor.shape.resize(rank);
  for (std::uint64_t& extent : tensor.shape) {
    TRIMPOT_TRY(extent, cursor.number<std::uint64_t>());
  }
  TRIMPOT_TRY(const std::uint32_t type, cursor.number<std::uint32_t>());
  const auto bytes = tensor_bytes(type, tensor.shape);
  if (!bytes) {
    if (!element_type_info(type)) return cursor.error("{}", bytes.error().message);
    return cursor.error("{}: {}", bytes.error().message, kDamaged);
  }
  tensor.type = static_cast<ElementType>(type);
  tensor.bytes = *bytes;
  TRIMPOT_TRY(tensor.offset, cursor.number<std::uint64_t>());
  return tensor;
}

// Makes offsets absolute. They must be the running sum of the padded sizes: everything else is an
// overlap or a gap. The padding after the last tensor may be missing, as llama.cpp allows it too.
Status place_tensors(const std::string& path, std::uint64_t file_bytes, std::uint64_t data_offset,
                     std::uint64_t alignment, std::span<const std::uint64_t> info_positions,
                     std::vector<TensorInfo>& tensors) {
  std::uint64_t expected = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    TensorInfo& tensor = tensors[i];
    if (tensor.offset != expected) {
      const std::string_view problem = tensor.offset % alignment != 0 ? "is not aligned"
                                       : tensor.offset < expected ? "overlaps the tensor before it"
                                                                  : "leaves a gap before it";
      return fail("{}: tensor \"{}\" (byte {}): data offset {} {}, {} was expected: {}", path,
                  printable(tensor.name), info_positions[i], tensor.offset, problem, expected,
                  kDamaged);
    }
    const std::uint64_t start = data_offset + expected;
    if (start > file_bytes || tensor.bytes > file_bytes - start)
      return fail(
          "{}: tensor \"{}\" (byte {}): its {} bytes of data from byte {} on reach past the end of "
          "the file at {}: the file is cut short; download it again",
          path, printable(tensor.name), info_positions[i], tensor.bytes, start, file_bytes);
    tensor.offset = start;
    expected += padded(tensor.bytes, alignment);
  }
  return {};
}

}  // namespace

Result<File> File::open(const std::string& path) {
  TRIMPOT_TRY(MappedFile mapping, MappedFile::open(path));
  File file(std::move(mapping));
  TRIMPOT_TRY_VOID(file.parse());
  return file;
}

Status File::parse() {
  TRIMPOT_TRY_VOID(check_magic(path(), bytes()));
  Cursor cursor(path(), bytes());
  TRIMPOT_TRY(const Preamble preamble, read_preamble(cursor));
  version_ = preamble.version;

  for (std::uint64_t i = 0; i < preamble.entries; ++i) {
    cursor.about(fmt::format("metadata entry {}", i));
    TRIMPOT_TRY(const std::string_view key, cursor.text());
    if (key.empty()) return cursor.error("its key is empty: {}", kDamaged);
    if (key.size() > kLongestKey)
      return cursor.error("its key has {} bytes, and GGUF allows {}: {}", key.size(), kLongestKey,
                          kDamaged);
    cursor.about(fmt::format("key \"{}\"", printable(key)));
    if (!metadata_index_.emplace(key, metadata_.size()).second)
      return cursor.error("the key is there twice: {}", kDamaged);
    TRIMPOT_TRY(Value value, read_value(cursor));
    if (key == "general.alignment") {
      const auto* number = std::get_if<std::uint64_t>(&value.scalar);
      if (value.type != ValueType::kU32 || !is_valid_alignment(*number))
        return cursor.error("the alignment is not a u32 that is a power of two from 8 up: {}",
                            kDamaged);
      alignment_ = static_cast<std::uint32_t>(*number);
    }
    metadata_.emplace_back(key, std::move(value));
  }
  TRIMPOT_TRY(const std::uint64_t parts, get_uint_or("split.count", 1));
  if (parts > 1)
    return fail(
        "{}: key \"split.count\": one of {} parts of a split model; merge them first: "
        "llama-gguf-split --merge FIRST_PART OUTPUT",
        path(), parts);

  std::vector<std::uint64_t> info_positions;
  for (std::uint64_t i = 0; i < preamble.tensors; ++i) {
    info_positions.push_back(cursor.position());
    TRIMPOT_TRY(TensorInfo tensor, read_tensor_info(cursor, i));
    if (!tensor_index_.emplace(tensor.name, tensors_.size()).second)
      return fail("{}: tensor \"{}\" (byte {}): a tensor of this name is there twice: {}", path(),
                  printable(tensor.name), info_positions.back(), kDamaged);
    tensors_.push_back(std::move(tensor));
  }
  data_offset_ = padded(cursor.position(), alignment_);
  TRIMPOT_TRY_VOID(
      place_tensors(path(), file_bytes(), data_offset_, alignment_, info_positions, tensors_));
  return {};
}

const Value* File::find(std::string_view key) const {
  const auto found = metadata_index_.find(std::string(key));
  return found == metadata_index_.end() ? nullptr : &metadata_[found->second].second;
}

const TensorInfo* File::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(std::string(name));
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace trimpot::gguf
