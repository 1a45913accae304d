#include "io/safetensors/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "io/atomic_file.h"
#include "io/printable.h"

namespace trimpot::safetensors {
namespace {

static_assert(std::endian::native == std::endian::little, "read and written as it lies in memory");

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr std::string_view kDamaged = "the file is damaged; download or write it again";

// Follows the JSON as it is read and lets through only {name: {dtype, shape, data_offsets}} and
// {"__metadata__": {text: text}}, without building a document: nesting cannot grow and keys that
// appear twice are seen.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<TensorInfo> tensors;  // begin and end: from the start of the data
  std::map<std::string, std::string> metadata;
  std::string problem;  // half a sentence
  std::size_t position = 0;

  bool null() override { return refuse("a null"); }
  bool boolean(bool) override { return refuse("a bool"); }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return refuse("a fraction"); }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      tensors.back().shape.push_back(value);
      return true;
    }
    if (state_ != State::kOffsets) return refuse("a number");
    if (offsets_ == 2) return stop("tensor \"{}\" has more than two data_offsets", name_);
    (offsets_ == 0 ? tensors.back().begin : tensors.back().end) = value;
    ++offsets_;
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      metadata[key_] = std::move(value);
      return true;
    }
    if (state_ != State::kTensor || key_ != "dtype") return refuse("a string");
    tensors.back().dtype = std::move(value);
    return true;
  }

  bool start_object(std::size_t) override {
    if (state_ == State::kStart) {
      state_ = State::kHeader;
      return true;
    }
    if (state_ != State::kHeader) return refuse("an object");
    if (key_ == "__metadata__") {
      if (has_metadata_) return stop("__metadata__ is there twice");
      has_metadata_ = true;
      state_ = State::kMetadata;
      return true;
    }
    state_ = State::kTensor;
    name_ = printable(key_);
    has_dtype_ = has_shape_ = has_offsets_ = false;
    offsets_ = 0;
    tensors.emplace_back().name = key_;
    return true;
  }

  bool key(string_t& value) override {
    if (state_ == State::kTensor) {
      bool* seen = value == "dtype"          ? &has_dtype_
                   : value == "shape"        ? &has_shape_
                   : value == "data_offsets" ? &has_offsets_
                                             : nullptr;
      if (seen == nullptr)
        return stop("tensor \"{}\" has the unknown field \"{}\"", name_, printable(value));
      if (*seen) return stop("tensor \"{}\" has the field \"{}\" twice", name_, value);
      *seen = true;
    } else if (state_ == State::kMetadata && metadata.contains(value)) {
      return stop("__metadata__ has the key \"{}\" twice", printable(value));
    }
    key_ = std::move(value);
    return true;
  }

  bool end_object() override {
    if (state_ == State::kTensor) {
      if (!has_dtype_) return stop("tensor \"{}\" has no dtype", name_);
      if (!has_shape_) return stop("tensor \"{}\" has no shape", name_);
      if (offsets_ != 2) return stop("tensor \"{}\" has no pair of data_offsets", name_);
    }
    state_ = state_ == State::kHeader ? State::kEnd : State::kHeader;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ != State::kTensor || key_ == "dtype") return refuse("an array");
    state_ = key_ == "shape" ? State::kShape : State::kOffsets;
    return true;
  }

  bool end_array() override {
    state_ = State::kTensor;
    return true;
  }

  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception&) override {
    position = at;
    problem = "the header is no valid JSON";
    return false;
  }

 private:
  enum class State { kStart, kHeader, kMetadata, kTensor, kShape, kOffsets, kEnd };

  template <typename... Args>
  bool stop(fmt::format_string<Args...> format, Args&&... args) {
    problem = fmt::format(format, std::forward<Args>(args)...);
    return false;
  }

  bool refuse(std::string_view what) {
    const std::string field = printable(key_);
    if (state_ == State::kStart) return stop("the header is {}, not an object", what);
    if (state_ == State::kHeader) return stop("\"{}\" is {}, not an object", field, what);
    if (state_ == State::kMetadata)
      return stop("__metadata__ key \"{}\" is {}, not a string", field, what);
    return stop("tensor \"{}\": {} is {}, which it cannot be", name_, field, what);
  }

  State state_ = State::kStart;
  std::string key_;
  std::string name_;  // of the tensor that is being read, printable
  bool has_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  int offsets_ = 0;
};

// Errors are half a sentence. A shape with a zero holds no bytes, which the format allows.
Result<std::uint64_t> data_bytes(std::string_view dtype, std::span<const std::uint64_t> shape) {
  const std::uint64_t width = dtype_bytes(dtype);
  if (width == 0) return fail("dtype \"{}\" is not known", printable(dtype));
  std::uint64_t bytes = width;
  for (const std::uint64_t extent : shape) {
    if (extent != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / extent)
      return fail("its shape overflows 64 bits");
    bytes *= extent;
  }
  return bytes;
}

Status check_layout(const std::string& path, const std::vector<TensorInfo>& tensors,
                    std::uint64_t data_bytes_in_file) {
  std::uint64_t expected = 0;
  for (const TensorInfo& tensor : tensors) {
    const auto error = [&](const std::string& what) {
      return fail("{}: tensor \"{}\" (data_offsets {} to {}): {}: {}", path, printable(tensor.name),
                  tensor.begin, tensor.end, what, kDamaged);
    };
    const auto bytes = data_bytes(tensor.dtype, tensor.shape);
    if (!bytes) return error(bytes.error().message);
    if (tensor.end < tensor.begin) return error("they end before they begin");
    if (tensor.begin < expected) return error("overlaps the tensor before it");
    if (tensor.begin > expected)
      return error(fmt::format("leaves a hole of {} bytes before it", tensor.begin - expected));
    if (tensor.end - tensor.begin != *bytes)
      return error(fmt::format("dtype and shape need {} bytes", *bytes));
    if (tensor.end > data_bytes_in_file)
      return error(fmt::format("cut short: the file has {} bytes of data", data_bytes_in_file));
    expected = tensor.end;
  }
  if (expected != data_bytes_in_file)
    return fail("{}: {} bytes of data, but the header describes {}: {}", path, data_bytes_in_file,
                expected, kDamaged);
  return {};
}

}  // namespace

std::uint64_t dtype_bytes(std::string_view dtype) {
  constexpr struct {
    std::string_view name;
    std::uint64_t bytes;
  } kDtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                 {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                 {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  for (const auto& known : kDtypes)
    if (known.name == dtype) return known.bytes;
  return 0;
}

Result<File> File::open(const std::string& path) {
  TRIMPOT_TRY(MappedFile mapping, MappedFile::open(path));
  File file(std::move(mapping));
  TRIMPOT_TRY_VOID(file.parse());
  return file;
}

Status File::parse() {
  const auto bytes = mapping_.bytes();
  std::uint64_t length = 0;
  if (bytes.size() < sizeof(length))
    return fail("{}: {} bytes are too few for a safetensors file: {}", path(), bytes.size(),
                kDamaged);
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > kMaxHeaderBytes)
    return fail(
        "{}: not a safetensors file, or damaged: byte 0 promises a header of {} bytes, and {} are "
        "allowed; check the file name or download it again",
        path(), length, kMaxHeaderBytes);
  if (length > bytes.size() - sizeof(length))
    return fail("{}: the header of {} bytes is cut short: the file ends after {}: {}", path(),
                length, bytes.size(), kDamaged);
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + sizeof(length);
  HeaderReader header;
  if (!nlohmann::json::sax_parse(text, text + length, &header))
    return fail("{}: header (byte {}): {}: {}", path(), sizeof(length) + header.position,
                header.problem, kDamaged);

  tensors_ = std::move(header.tensors);
  metadata_ = std::move(header.metadata);
  // Ties are tensors without bytes next to another one.
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  const std::uint64_t data_start = sizeof(length) + length;
  TRIMPOT_TRY_VOID(check_layout(path(), tensors_, bytes.size() - data_start));
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!index_.emplace(tensors_[i].name, i).second)
      return fail("{}: tensor \"{}\" is there twice: {}", path(), printable(tensors_[i].name),
                  kDamaged);
    tensors_[i].begin += data_start;
    tensors_[i].end += data_start;
  }
  return {};
}

const TensorInfo* File::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

Status write(const std::string& path, const std::map<std::string, std::string>& metadata,
             const std::vector<OutputTensor>& tensors) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return dtype_bytes(tensors[a].dtype) > dtype_bytes(tensors[b].dtype);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string text;
  std::uint64_t offset = 0;
  std::map<std::string_view, std::size_t> names;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  for (const std::size_t i : order) {
    const OutputTensor& tensor = tensors[i];
    const auto error = [&](const std::string& what) {
      return fail("{}: tensor \"{}\": {}", path, printable(tensor.name), what);
    };
    if (tensor.name == "__metadata__") return error("this name is reserved");
    if (!names.emplace(tensor.name, i).second) return error("is there twice");
    const auto bytes = data_bytes(tensor.dtype, tensor.shape);
    if (!bytes) return error(bytes.error().message);
    if (*bytes != tensor.data.size())
      return error(fmt::format("{} bytes of data, {} are needed", tensor.data.size(), *bytes));
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + *bytes}}};
    offset += *bytes;
  }
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    return fail("{}: a tensor name or metadata text is not valid UTF-8", path);
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxHeaderBytes)
    return fail("{}: the header of {} bytes is longer than the allowed {}", path, text.size(),
                kMaxHeaderBytes);
  const std::uint64_t length = text.size();
  TRIMPOT_TRY(AtomicFile file, AtomicFile::create(path));
  TRIMPOT_TRY_VOID(file.write(std::as_bytes(std::span(&length, 1))));
  TRIMPOT_TRY_VOID(file.write(text));
  for (const std::size_t i : order) {
    TRIMPOT_TRY_VOID(file.write(tensors[i].data));
  }
  return file.commit();
}

}  // namespace trimpot::safetensors
