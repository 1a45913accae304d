#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "io/gguf/patch.h"
#include "io/test_files.h"

namespace trimpot::gguf {
namespace {

constexpr std::uint64_t kColumns = 64;
constexpr std::uint64_t kRows = 60001;  // 40 bytes each: 2.3 MiB, so three pieces, the last short

void write_model(const std::string& path) {
  Writer writer;
  writer.set_string("general.architecture", "llama");
  writer.add_tensor("before", ElementType::kF32, {700000}, counted_bytes(2800000, 5));
  writer.add_tensor("scales", ElementType::kQ4_1, {kColumns, kRows}, counted_bytes(kRows * 40, 6));
  writer.add_tensor("after", ElementType::kF16, {7}, counted_bytes(14, 7));
  ASSERT_TRUE(writer.write(path));
}

bool wants_scales(const TensorInfo& tensor) { return tensor.name == "scales"; }

TEST(GgufPatch, ChangesOnlyWhatTheCallerChanges) {
  const TempFolder folder;
  write_model(folder.file("in.gguf"));
  const auto base = File::open(folder.file("in.gguf"));
  ASSERT_TRUE(base) << base.error().message;
  std::uint64_t next_row = 0;
  const auto patch = [&](const TensorInfo& tensor, std::span<std::byte> rows,
                         std::uint64_t first_row) -> Status {
    EXPECT_EQ(tensor.name, "scales");
    EXPECT_EQ(first_row, next_row);
    EXPECT_EQ(rows.size() % 40, 0u);
    EXPECT_LE(rows.size(), 1u << 20);
    // The rows must be those of the base: byte j of row r is byte 40 r + j of the tensor.
    EXPECT_TRUE(std::ranges::equal(rows, base->data(tensor).subspan(first_row * 40, rows.size())));
    for (std::size_t row = 0; row < rows.size() / 40; ++row) {
      const std::byte mark{static_cast<unsigned char>((first_row + row) % 251)};
      rows[row * 40] = mark;
      rows[row * 40 + 21] = mark;
    }
    next_row += rows.size() / 40;
    return {};
  };
  const auto status = write_patched_copy(*base, folder.file("out.gguf"), patch, wants_scales);
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_EQ(next_row, kRows);
  std::string expected = read_file(folder.file("in.gguf"));
  const std::uint64_t start = base->find_tensor("scales")->offset;
  for (std::uint64_t row = 0; row < kRows; ++row)
    for (const std::uint64_t at : {0, 21})
      expected[start + row * 40 + at] = static_cast<char>(row % 251);
  EXPECT_TRUE(read_file(folder.file("out.gguf")) == expected);
  EXPECT_TRUE(File::open(folder.file("out.gguf")));
  EXPECT_EQ(folder.names().size(), 2u);
}

// A row longer than a piece is still handed over whole; bytes after the last tensor are kept.
TEST(GgufPatch, LongRowsAndTrailingBytes) {
  const TempFolder folder;
  Writer writer;
  writer.add_tensor("wide", ElementType::kF32, {400000, 2}, counted_bytes(3200000));
  ASSERT_TRUE(writer.write(folder.file("in.gguf")));
  write_file(folder.file("in.gguf"), read_file(folder.file("in.gguf")) + "trailing");
  const auto base = File::open(folder.file("in.gguf"));
  ASSERT_TRUE(base);
  std::vector<std::uint64_t> calls;
  const auto status = write_patched_copy(
      *base, folder.file("out.gguf"),
      [&](const TensorInfo&, std::span<std::byte> rows, std::uint64_t first_row) -> Status {
        EXPECT_EQ(rows.size(), 1600000u);
        calls.push_back(first_row);
        return {};
      },
      [](const TensorInfo&) { return true; });
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_EQ(calls, (std::vector<std::uint64_t>{0, 1}));
  EXPECT_TRUE(read_file(folder.file("out.gguf")) == read_file(folder.file("in.gguf")));
}

TEST(GgufPatch, RefusesToWriteOntoTheInput) {
  const TempFolder folder;
  const std::string path = folder.file("in.gguf");
  ASSERT_TRUE(small_model().write(path));
  const std::string before = read_file(path);
  std::filesystem::create_symlink(path, folder.file("link.gguf"));
  std::filesystem::create_hard_link(path, folder.file("twin.gguf"));
  const auto base = File::open(path);
  ASSERT_TRUE(base);
  const auto nothing = [](const TensorInfo&, std::span<std::byte>, std::uint64_t) -> Status {
    return {};
  };
  for (const std::string& out : {path, folder.file("link.gguf"), folder.file("twin.gguf")}) {
    const auto status = write_patched_copy(*base, out, nothing, wants_scales);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().message,
              out + ": is the model that is being read; write the copy under another name");
  }
  EXPECT_TRUE(read_file(path) == before);
}

TEST(GgufPatch, ErrorsLeaveNothing) {
  const TempFolder folder;
  write_model(folder.file("in.gguf"));
  const auto base = File::open(folder.file("in.gguf"));
  ASSERT_TRUE(base);
  const auto refuse = [](const TensorInfo& tensor, std::span<std::byte>,
                         std::uint64_t first_row) -> Status {
    if (first_row == 0) return {};
    return fail("{}: no scale for row {}", tensor.name, first_row);
  };
  const auto status = write_patched_copy(*base, folder.file("out.gguf"), refuse, wants_scales);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("scales: no scale for row"), std::string::npos);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"in.gguf"});
  const auto full = write_patched_copy(*base, "/dev/full", refuse, wants_scales);
  ASSERT_FALSE(full);
  EXPECT_NE(full.error().message.find("no space left"), std::string::npos);
}

}  // namespace
}  // namespace trimpot::gguf
