#include "io/gguf/gguf.h"
#include "io/gguf/layout.h"
#include "io/gguf/stream_writer.h"
#include "io/printable.h"

namespace trimpot::gguf {

void Writer::add_tensor(std::string name, ElementType type, std::vector<std::uint64_t> shape,
                        std::vector<std::byte> data) {
  tensors_.push_back({std::move(name), type, std::move(shape), std::move(data)});
}

Status Writer::write(const std::string& path) const {
  StreamWriter stream(*this);
  for (const Tensor& tensor : tensors_) {
    const auto bytes = tensor_bytes(static_cast<std::uint32_t>(tensor.type), tensor.shape);
    if (bytes && *bytes != tensor.data.size())
      return fail("{}: tensor \"{}\": {} bytes of data, {} are needed", path,
                  printable(tensor.name), tensor.data.size(), *bytes);
    stream.declare(tensor.name, tensor.type, tensor.shape);
  }
  TRIMPOT_TRY_VOID(stream.open(path));
  for (const Tensor& tensor : tensors_) TRIMPOT_TRY_VOID(stream.write(tensor.name, 0, tensor.data));
  return stream.commit();
}

}  // namespace trimpot::gguf
