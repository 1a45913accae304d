#include "io/gguf/stream_writer.h"

#include "io/gguf/encode.h"
#include "io/gguf/layout.h"
#include "io/printable.h"

namespace trimpot::gguf {
namespace {

// Adds [begin, end) to ranges that do not touch each other; false if some of it is there already.
bool add_range(std::map<std::uint64_t, std::uint64_t>& ranges, std::uint64_t begin,
               std::uint64_t end) {
  if (begin == end) return true;
  auto next = ranges.lower_bound(begin);
  if (next != ranges.end() && next->first < end) return false;
  if (next != ranges.begin()) {
    const auto before = std::prev(next);
    if (before->second > begin) return false;
    if (before->second == begin) {
      begin = before->first;
      ranges.erase(before);
    }
  }
  if (next != ranges.end() && next->first == end) {
    end = next->second;
    ranges.erase(next);
  }
  ranges.emplace(begin, end);
  return true;
}

}  // namespace

void StreamWriter::declare(std::string name, ElementType type, std::vector<std::uint64_t> shape) {
  tensors_.push_back({std::move(name), type, std::move(shape), 0, 0, {}});
}

Result<std::vector<std::byte>> StreamWriter::make_header() {
  TRIMPOT_TRY(const std::uint32_t alignment, Metadata::alignment());
  Bytes header;
  append(header, std::as_bytes(std::span("GGUF", 4)));
  append_number(header, std::uint32_t{3});
  append_number(header, static_cast<std::uint64_t>(tensors_.size()));
  append_number(header, static_cast<std::uint64_t>(Metadata::size()));
  TRIMPOT_TRY_VOID(Metadata::append_to(header));
  std::uint64_t offset = 0;
  index_.clear();
  for (Tensor& tensor : tensors_) {
    if (tensor.name.empty() || tensor.name.size() > kLongestTensorName)
      return fail("tensor \"{}\": its name must have from 1 to {} bytes", printable(tensor.name),
                  kLongestTensorName);
    if (!index_.emplace(tensor.name, index_.size()).second)
      return fail("tensor \"{}\" was added twice", printable(tensor.name));
    const auto type_id = static_cast<std::uint32_t>(tensor.type);
    const auto bytes = tensor_bytes(type_id, tensor.shape);
    if (!bytes) return fail("tensor \"{}\": {}", printable(tensor.name), bytes.error().message);
    tensor.bytes = *bytes;
    tensor.offset = offset;
    append_text(header, tensor.name);
    append_number(header, static_cast<std::uint32_t>(tensor.shape.size()));
    for (const std::uint64_t extent : tensor.shape) append_number(header, extent);
    append_number(header, type_id);
    append_number(header, offset);
    // Each tensor has less than 2^63 bytes, so two of them can be added before this stops.
    offset += padded(tensor.bytes, alignment);
    if (offset > std::uint64_t{1} << 62)
      return fail("tensor \"{}\": the file would have more than 2^62 bytes",
                  printable(tensor.name));
  }
  header.resize(padded(header.size(), alignment));
  for (Tensor& tensor : tensors_) tensor.offset += header.size();
  file_bytes_ = header.size() + offset;
  return header;
}

Status StreamWriter::open(const std::string& path) {
  if (file_) return fail("{}: cannot write: {} was opened before", path, path_);
  path_ = path;
  const auto header = make_header();
  if (!header) return fail("{}: {}", path, header.error().message);
  TRIMPOT_TRY(AtomicFile file, AtomicFile::create(path));
  TRIMPOT_TRY_VOID(file.write(*header));
  TRIMPOT_TRY_VOID(file.extend(file_bytes_));
  file_ = std::move(file);
  return {};
}

Status StreamWriter::write(std::string_view name, std::uint64_t offset,
                           std::span<const std::byte> bytes) {
  if (!file_) return fail("tensor \"{}\": the file is not open", printable(name));
  const auto found = index_.find(std::string(name));
  if (found == index_.end())
    return fail("{}: tensor \"{}\" was not declared", path_, printable(name));
  Tensor& tensor = tensors_[found->second];
  if (offset > tensor.bytes || bytes.size() > tensor.bytes - offset)
    return fail("{}: tensor \"{}\": {} bytes from byte {} on, but it has only {}", path_,
                printable(name), bytes.size(), offset, tensor.bytes);
  if (!add_range(tensor.written, offset, offset + bytes.size()))
    return fail("{}: tensor \"{}\": some of the {} bytes from byte {} on were written before",
                path_, printable(name), bytes.size(), offset);
  return file_->write_at(tensor.offset + offset, bytes);
}

Status StreamWriter::commit() {
  if (!file_) return fail("cannot finish: no file is open");
  if (tensors_.size() != index_.size())
    return fail("{}: tensor \"{}\" was declared too late, after the header was written", path_,
                printable(tensors_.back().name));
  for (const Tensor& tensor : tensors_) {
    const auto first = tensor.written.begin();
    const bool starts = first != tensor.written.end() && first->first == 0;
    const std::uint64_t missing = starts ? first->second : 0;
    if (missing != tensor.bytes)
      return fail("{}: tensor \"{}\": byte {} of {} was not written", path_, printable(tensor.name),
                  missing, tensor.bytes);
  }
  return file_->commit();
}

}  // namespace trimpot::gguf
