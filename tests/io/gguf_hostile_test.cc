// Files that were cut or changed must give an error or a file whose every span lies inside it. Most
// telling under the address sanitizer.
#include <gtest/gtest.h>

#include "base/rng.h"
#include "io/gguf/gguf.h"
#include "io/test_files.h"

namespace trimpot::gguf {
namespace {

bool lies_inside(std::span<const std::byte> part, std::span<const std::byte> whole) {
  return part.empty() ||
         (part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

// Also walks through everything that a reader of the file would touch.
void check_spans(const File& file) {
  std::uint64_t sum = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    ASSERT_TRUE(lies_inside(file.data(tensor), file.bytes())) << tensor.name;
    ASSERT_EQ(file.find_tensor(tensor.name), &tensor);
    for (const std::byte byte : file.data(tensor)) sum += std::to_integer<std::uint64_t>(byte);
  }
  for (const auto& [key, value] : file.metadata()) {
    ASSERT_TRUE(lies_inside(value.raw, file.bytes())) << key;
    for (const std::string_view text : value.strings)
      ASSERT_TRUE(lies_inside(std::as_bytes(std::span(text.data(), text.size())), file.bytes()));
    (void)file.get_uint(key);
    (void)file.get_ints(key);
    (void)file.get_floats(key);
    (void)file.get_string(key);
  }
  EXPECT_GE(sum, 0u);
}

TEST(GgufHostile, EveryCutIsAnError) {
  const TempFolder folder;
  const std::string path = folder.file("m.gguf");
  ASSERT_TRUE(small_model().write(path));
  const std::string whole = read_file(path);
  ASSERT_TRUE(File::open(path));
  MemoryFile cut;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    ASSERT_TRUE(cut.set(whole.substr(0, size)));
    const auto file = File::open(cut.path());
    ASSERT_FALSE(file) << "opened with " << size << " of " << whole.size() << " bytes";
    ASSERT_TRUE(file.error().message.starts_with(cut.path())) << file.error().message;
  }
}

TEST(GgufHostile, PaddingAfterTheLastTensorMayBeMissing) {
  const TempFolder folder;
  Writer writer;
  writer.add_tensor("w", ElementType::kF32, {3}, counted_bytes(12));
  const std::string path = folder.file("m.gguf");
  ASSERT_TRUE(writer.write(path));
  const std::string whole = read_file(path);
  ASSERT_EQ(whole.size(), 64u + 32u);
  for (std::size_t size = 60; size <= whole.size(); ++size) {
    write_file(path, whole.substr(0, size));
    EXPECT_EQ(File::open(path).has_value(), size >= 64 + 12) << size;
  }
}

TEST(GgufHostile, MutationsNeverLeadOutside) {
  const TempFolder folder;
  const std::string path = folder.file("m.gguf");
  ASSERT_TRUE(small_model().write(path));
  const std::string whole = read_file(path);
  const auto valid = File::open(path);
  ASSERT_TRUE(valid);
  const std::size_t header = valid->data_offset();
  MemoryFile mutant;
  const CounterRng rng(20240607, 1);
  std::uint64_t draw = 0;
  int opened = 0;
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = whole;
    const std::uint64_t changes = 1 + rng.below(draw++, 4);
    for (std::uint64_t i = 0; i < changes; ++i) {
      const std::size_t at = rng.below(draw++, header);
      switch (rng.below(draw++, 4)) {
        case 0:
          bytes[at] = static_cast<char>(rng.below(draw++, 256));
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(draw++, 8)));
          break;
        case 2:
          bytes[at] = static_cast<char>(bytes[at] + (rng.below(draw++, 2) == 0 ? 1 : -1));
          break;
        default:  // eight bytes that look like a length or an offset
          for (std::size_t j = at; j < std::min(at + 8, header); ++j)
            bytes[j] = static_cast<char>(rng.below(draw++, 2) == 0 ? 0xff : 0x00);
      }
    }
    ASSERT_TRUE(mutant.set(bytes));
    const auto file = File::open(mutant.path());
    if (file) {
      ++opened;
      check_spans(*file);
    } else {
      ++refused;
      ASSERT_TRUE(file.error().message.starts_with(mutant.path())) << file.error().message;
      ASSERT_EQ(file.error().message.find('\n'), std::string::npos) << file.error().message;
    }
  }
  // Both must happen, or the mutations test nothing.
  EXPECT_GT(opened, 1000);
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace trimpot::gguf
