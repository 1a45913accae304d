// Whatever the bytes, safetensors::File gives an error or tensors that lie inside the file, one
// after the other.
#include <cstdlib>

#include "input_file.h"
#include "io/safetensors/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static InputFile input;
  if (!input.set(data, size)) return 0;
  const auto file = trimpot::safetensors::File::open(input.path());
  if (!file) {
    if (file.error().message.find('\n') != std::string::npos) std::abort();
    return 0;
  }
  std::uint64_t end = 0;
  for (const auto& tensor : file->tensors()) {
    if (tensor.begin < end || tensor.end < tensor.begin || tensor.end > size) std::abort();
    if (file->find(tensor.name) != &tensor) std::abort();
    end = tensor.end;
  }
  return 0;
}
