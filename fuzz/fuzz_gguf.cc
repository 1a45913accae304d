// Whatever the bytes, gguf::File gives an error or spans that lie inside the file.
#include <cstdlib>

#include "input_file.h"
#include "io/gguf/gguf.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void require_inside(std::span<const std::byte> part, std::span<const std::byte> whole) {
  require(part.empty() || (part.data() >= whole.data() &&
                           part.data() + part.size() <= whole.data() + whole.size()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static InputFile input;
  if (!input.set(data, size)) return 0;
  const auto file = trimpot::gguf::File::open(input.path());
  if (!file) {
    require(file.error().message.find('\n') == std::string::npos);
    return 0;
  }
  for (const auto& tensor : file->tensors()) {
    require_inside(file->data(tensor), file->bytes());
    require(file->find_tensor(tensor.name) == &tensor);
  }
  for (const auto& [key, value] : file->metadata()) {
    require_inside(value.raw, file->bytes());
    for (const std::string_view text : value.strings)
      require_inside(std::as_bytes(std::span(text.data(), text.size())), file->bytes());
    require(file->find(key) == &value);
    (void)file->get_uint(key);
    (void)file->get_float(key);
    (void)file->get_string(key);
    (void)file->get_strings(key);
    (void)file->get_ints(key);
    (void)file->get_floats(key);
  }
  return 0;
}
