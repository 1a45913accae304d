// One broken file for each error: the message must name the file, the key or tensor, the byte of
// the field that is wrong, and what to do.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

#include "io/gguf/gguf.h"
#include "io/test_files.h"

namespace trimpot::gguf {
namespace {

class GgufErrors : public testing::Test {
 protected:
  void expect(const Raw& raw, std::initializer_list<std::string_view> parts) {
    write_file(path_, raw.bytes());
    const auto file = File::open(path_);
    ASSERT_FALSE(file) << "opened, but expected: " << *parts.begin();
    const std::string& message = file.error().message;
    EXPECT_TRUE(message.starts_with(path_ + ": ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string_view part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
  }
  static Raw with_entry() { return Raw().start(0, 1); }

  const TempFolder folder_;
  const std::string path_ = folder_.file("bad.gguf");
  static constexpr std::string_view kAgain = "download it again";
};

TEST_F(GgufErrors, NotGguf) {
  expect(Raw().text("something else"), {"not a GGUF file", "byte 0", "convert"});
  expect(Raw().u8('G').u8('G'), {"not a GGUF file"});
  write_file(path_, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
  const auto file = File::open(path_);
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message.find("git lfs pull"), std::string::npos);
}

TEST_F(GgufErrors, Version) {
  expect(Raw().start(0, 0, 1), {"header (byte 4)", "version 1 ", "convert the model again"});
  expect(Raw().start(0, 0, 0), {"header (byte 4)", "version 0 is not known"});
  expect(Raw().start(0, 0, 4), {"header (byte 4)", "version 4 is not known", "newer trimpot"});
  expect(Raw().start(0, 0, 3u << 24), {"header (byte 4)", "big-endian", "gguf_convert_endian"});
}

TEST_F(GgufErrors, AbsurdCounts) {
  expect(Raw().start(1ull << 60, 0), {"header (byte 8)", "1152921504606846976 tensors", kAgain});
  expect(Raw().start(0, 1ull << 60), {"header (byte 16)", "metadata entries", kAgain});
  expect(with_entry().u64(1ull << 60).data(40), {"metadata entry 0 (byte 24)", kAgain});
  expect(with_entry().text("k").u32(8).u64(~0ull).data(40), {"key \"k\" (byte 37)", kAgain});
  for (const std::uint32_t element : {0u, 4u, 8u, 12u})
    expect(with_entry().text("k").u32(9).u32(element).u64(1ull << 61).data(40),
           {"key \"k\" (byte 41)", "2305843009213693952 elements", kAgain});
  expect(with_entry().text("k").u32(9).u32(8).u64(2).text("a").u64(1ull << 50).data(9),
         {"key \"k\" (byte 58)", "1125899906842624 bytes are needed", kAgain});
}

// A sparse file with room for millions of entries must not make the reader collect them.
TEST_F(GgufErrors, AbsurdCountsInASparseFile) {
  const auto expect_sparse = [&](const Raw& raw, std::string_view part) {
    write_file(path_, raw.bytes());
    ASSERT_EQ(::truncate(path_.c_str(), 1 << 30), 0);
    const auto file = File::open(path_);
    ASSERT_FALSE(file);
    EXPECT_NE(file.error().message.find(part), std::string::npos) << file.error().message;
  };
  expect_sparse(Raw().start(2u << 20, 0), "2097152 tensors");
  expect_sparse(Raw().start(0, 2u << 20), "2097152 metadata entries");
  expect_sparse(with_entry().text("k").u32(9).u32(8).u64(100u << 20), "104857600 elements");
  expect_sparse(with_entry().text("k").u32(9).u32(0).u64(500u << 20), "524288000 elements");
  expect_sparse(with_entry().text("k").u32(8).u64(500u << 20), "524288000 bytes are needed");
  // Two strings of 200 and 100 MiB, which the file has but no header should.
  write_file(path_, Raw().start(0, 2).text("k").u32(8).u64(200u << 20).bytes());
  std::fstream out(path_, std::ios::in | std::ios::out | std::ios::binary);
  out.seekp((200 << 20) + 45);
  out << Raw().text("l").u32(8).u64(100u << 20).bytes();
  out.close();
  ASSERT_EQ(::truncate(path_.c_str(), 1 << 30), 0);
  const auto file = File::open(path_);
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message.find("longer than 256 MiB"), std::string::npos)
      << file.error().message;
}

TEST_F(GgufErrors, Keys) {
  expect(with_entry().text("").u32(4).u32(1), {"metadata entry 0 (byte 24)", "empty", kAgain});
  expect(Raw().start(0, 2).text("twin").u32(4).u32(1).text("twin").u32(4).u32(2),
         {"key \"twin\"", "(byte 44)", "twice", kAgain});
  expect(with_entry().text(std::string(70000, 'k')).u32(4).u32(1), {"70000 bytes", kAgain});
  expect(with_entry().text("new\nline\xff\"").u32(99).u32(0), {"\"new\\x0aline\\xff\\x22\""});
}

TEST_F(GgufErrors, Values) {
  expect(with_entry().text("k").u32(13).u32(1),
         {"key \"k\" (byte 33)", "value type 13 is not known", kAgain});
  expect(with_entry().text("k").u32(9).u32(77).u64(0),
         {"key \"k\" (byte 37)", "unknown value type 77", kAgain});
  expect(with_entry().text("k").u32(9).u32(9).u64(0),
         {"key \"k\" (byte 37)", "array of arrays", kAgain});
  expect(with_entry().text("k").u32(7).u8(2).data(40),
         {"key \"k\" (byte 37)", "a bool is 2", kAgain});
  expect(with_entry().text("k").u32(9).u32(7).u64(2).u8(1).u8(255).data(40),
         {"key \"k\"", "a bool of the array is 255", kAgain});
}

// The last thing in the file lacks one byte: nothing behind it would fail in its place.
TEST_F(GgufErrors, OneByteMissing) {
  expect(with_entry().text("k").u32(8).u64(5).data(4),
         {"key \"k\" (byte 37)", "5 bytes are needed here and 4 are left", kAgain});
  expect(with_entry().text("k").u32(10).data(7),
         {"key \"k\" (byte 37)", "8 bytes are needed here and 7 are left", kAgain});
  expect(with_entry().text("k").u32(9).u32(0).u64(5).data(4),
         {"key \"k\" (byte 41)", "5 elements of type u8", "the 4 bytes that follow", kAgain});
  expect(with_entry().text("k").u32(9).u32(8).u64(1).u64(5).data(4),
         {"key \"k\" (byte 49)", "5 bytes are needed here and 4 are left", kAgain});
}

TEST_F(GgufErrors, Alignment) {
  for (const std::uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 0xffffffffu})
    expect(with_entry().text("general.alignment").u32(4).u32(alignment),
           {"key \"general.alignment\" (byte 53)", "power of two", kAgain});
  expect(with_entry().text("general.alignment").u32(10).u64(32),
         {"key \"general.alignment\"", "not a u32", kAgain});
  expect(with_entry().text("general.alignment").u32(8).text("32"),
         {"key \"general.alignment\"", "not a u32", kAgain});
}

TEST_F(GgufErrors, SplitFiles) {
  expect(with_entry().text("split.count").u32(2).number(std::uint16_t{3}),
         {"split.count", "3 parts", "llama-gguf-split --merge"});
  write_file(path_, with_entry().text("split.count").u32(2).number(std::uint16_t{1}).bytes());
  EXPECT_TRUE(File::open(path_));
}

TEST_F(GgufErrors, TensorNames) {
  expect(Raw().start(1, 0).tensor("", {32}, 0, 0).pad(32).data(128),
         {"tensor number 0 (byte 24)", "no name", kAgain});
  expect(Raw().start(1, 0).tensor(std::string(64, 'n'), {32}, 0, 0).pad(32).data(128),
         {"tensor number 0 (byte 24)", "64 bytes", kAgain});
  expect(Raw().start(2, 0).tensor("w", {32}, 0, 0).tensor("w", {32}, 0, 128).pad(32).data(256),
         {"tensor \"w\" (byte 57)", "twice", kAgain});
}

TEST_F(GgufErrors, TensorTypes) {
  expect(Raw().start(1, 0).tensor("blk.0.w", {256}, 12345, 0).pad(32).data(1024),
         {"tensor \"blk.0.w\" (byte 51)", "id 12345", "F32, F16", "Q4_1"});
  // Q4_2, which ggml gave up, and Q8_1, which no file holds.
  for (const std::uint32_t id : {4u, 9u})
    expect(Raw().start(1, 0).tensor("blk.0.w", {256}, id, 0).pad(32).data(1024),
           {"tensor \"blk.0.w\" (byte 51)", "type id", "is not known"});
  expect(Raw().start(1, 0).tensor("blk.0.w", {128, 2}, 12, 0).pad(32).data(1024),
         {"tensor \"blk.0.w\"", "128 elements are no whole number of Q4_K blocks of 256", kAgain});
  expect(Raw().start(1, 0).tensor("blk.0.w", {256}, ~0u, 0).pad(32).data(1024),
         {"tensor \"blk.0.w\"", "id 4294967295"});
}

TEST_F(GgufErrors, Shapes) {
  expect(Raw().start(1, 0).tensor("w", {1, 1, 1, 1, 1}, 0, 0).pad(32).data(32),
         {"tensor \"w\" (byte 33)", "5 axes", kAgain});
  expect(Raw().start(1, 0).tensor("w", {32, 0}, 0, 0).pad(32).data(32),
         {"tensor \"w\"", "[32, 0] has an empty axis", kAgain});
  expect(Raw().start(1, 0).tensor("w", {1ull << 32, 1ull << 32}, 0, 0).pad(32).data(32),
         {"tensor \"w\"", "overflows", kAgain});
  expect(Raw().start(1, 0).tensor("w", {1ull << 62}, 0, 0).pad(32).data(32),
         {"tensor \"w\"", "overflows", kAgain});
  expect(Raw().start(1, 0).tensor("w", {48, 2}, 2, 0).pad(32).data(96),
         {"tensor \"w\"", "48 elements are no whole number of Q4_0 blocks of 32", kAgain});
}

TEST_F(GgufErrors, Offsets) {
  const auto two = [](std::uint64_t second) {
    return Raw().start(2, 0).tensor("a", {10}, 0, 0).tensor("b", {10}, 0, second).pad(32).data(192);
  };
  write_file(path_, two(64).bytes());
  EXPECT_TRUE(File::open(path_));
  expect(two(32), {"tensor \"b\" (byte 57)", "32 overlaps", "64 was expected", kAgain});
  expect(two(96), {"tensor \"b\" (byte 57)", "96 leaves a gap", "64 was expected", kAgain});
  expect(two(40), {"tensor \"b\" (byte 57)", "40 is not aligned", kAgain});
  expect(two(~0ull - 31), {"tensor \"b\" (byte 57)", "leaves a gap", kAgain});
}

TEST_F(GgufErrors, DataPastTheEnd) {
  expect(Raw().start(1, 0).tensor("w", {10}, 0, 0).pad(32).data(39),
         {"tensor \"w\" (byte 24)", "40 bytes of data from byte 64", "the end of the file at 103",
          kAgain});
  expect(Raw().start(1, 0).tensor("w", {1ull << 50}, 0, 0).pad(32).data(40),
         {"tensor \"w\"", "cut short", kAgain});
  expect(Raw().start(1, 0).tensor("w", {10}, 0, 0), {"tensor \"w\"", "cut short", kAgain});
}

TEST_F(GgufErrors, NoFile) {
  const auto file = File::open(folder_.file("absent.gguf"));
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message.find("absent.gguf"), std::string::npos);
}

}  // namespace
}  // namespace trimpot::gguf
