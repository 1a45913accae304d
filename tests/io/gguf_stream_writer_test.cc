#include <gtest/gtest.h>

#include <algorithm>

#include "io/gguf/gguf.h"
#include "io/gguf/stream_writer.h"
#include "io/test_files.h"

namespace trimpot::gguf {
namespace {

class GgufStreamWriter : public testing::Test {
 protected:
  // The tensors of small_model().
  static StreamWriter declared() {
    StreamWriter writer(small_model());
    writer.declare("norm", ElementType::kF32, {5});
    writer.declare("weight", ElementType::kQ4_1, {64, 3});
    writer.declare("last", ElementType::kF16, {8, 2, 2});
    return writer;
  }
  void expect(const Status& status, std::initializer_list<std::string_view> parts) {
    ASSERT_FALSE(status) << *parts.begin();
    for (const std::string_view part : parts)
      EXPECT_NE(status.error().message.find(part), std::string::npos)
          << status.error().message << "\nlacks: " << part;
  }

  const TempFolder folder_;
  const std::string path_ = folder_.file("m.gguf");
  const std::vector<std::byte> norm_ = counted_bytes(20, 1), weight_ = counted_bytes(120, 2),
                               last_ = counted_bytes(64, 3);
};

TEST_F(GgufStreamWriter, PiecesInAnyOrderGiveTheBytesOfWriter) {
  ASSERT_TRUE(small_model().write(folder_.file("whole.gguf")));
  for (const std::uint32_t alignment : {0u, 8u, 256u}) {
    Writer whole = small_model();
    StreamWriter writer = declared();
    if (alignment != 0) {
      whole.set_uint32("general.alignment", alignment);
      writer.set_uint32("general.alignment", alignment);
    }
    ASSERT_TRUE(whole.write(folder_.file("whole.gguf")));
    ASSERT_TRUE(writer.open(path_));
    const std::span<const std::byte> weight(weight_);
    EXPECT_TRUE(writer.write("last", 0, last_));
    EXPECT_TRUE(writer.write("weight", 80, weight.subspan(80)));  // end, start, two in the middle
    EXPECT_TRUE(writer.write("weight", 0, weight.first(10)));
    EXPECT_TRUE(writer.write("weight", 40, weight.subspan(40, 40)));
    EXPECT_TRUE(writer.write("weight", 20, {}));
    EXPECT_FALSE(std::filesystem::exists(path_));
    EXPECT_TRUE(writer.write("weight", 10, weight.subspan(10, 30)));
    EXPECT_TRUE(writer.write("norm", 0, norm_));
    const Status status = writer.commit();
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_EQ(read_file(path_), read_file(folder_.file("whole.gguf")));
    EXPECT_EQ(folder_.names().size(), 2u);
    std::filesystem::remove(path_);
  }
}

TEST_F(GgufStreamWriter, RefusesToFinishWithAHole) {
  {
    StreamWriter writer = declared();
    ASSERT_TRUE(writer.open(path_));
    const std::span<const std::byte> weight(weight_);
    ASSERT_TRUE(writer.write("norm", 0, norm_));
    ASSERT_TRUE(writer.write("last", 0, last_));
    expect(writer.commit(), {path_, "\"weight\"", "byte 0 of 120 was not written"});
    ASSERT_TRUE(writer.write("weight", 1, weight.subspan(1, 99)));
    expect(writer.commit(), {"byte 0 of 120"});
    ASSERT_TRUE(writer.write("weight", 0, weight.first(1)));
    expect(writer.commit(), {"byte 100 of 120"});
    ASSERT_TRUE(writer.write("weight", 101, weight.subspan(101)));
    expect(writer.commit(), {"byte 100 of 120"});
    EXPECT_FALSE(std::filesystem::exists(path_));
    EXPECT_EQ(folder_.names().size(), 1u);
  }
  EXPECT_TRUE(folder_.names().empty());  // destroyed without commit
}

TEST_F(GgufStreamWriter, RefusesBytesThatDoNotBelong) {
  StreamWriter writer = declared();
  expect(writer.write("norm", 0, norm_), {"norm", "not open"});
  expect(writer.commit(), {"no file is open"});
  ASSERT_TRUE(writer.open(path_));
  expect(writer.open(folder_.file("other.gguf")), {"other.gguf", path_, "opened before"});
  expect(writer.write("bias", 0, norm_), {path_, "\"bias\" was not declared"});
  expect(writer.write("norm", 1, norm_), {path_, "\"norm\"", "20 bytes from byte 1", "only 20"});
  expect(writer.write("norm", ~0ull, norm_), {"only 20"});
  expect(writer.write("norm", 21, {}), {"only 20"});
  ASSERT_TRUE(writer.write("norm", 4, std::span(norm_).subspan(4, 8)));
  for (const auto& [offset, size] : {std::pair{0, 5}, {4, 1}, {5, 2}, {11, 9}, {0, 20}})
    expect(writer.write("norm", offset, std::span(norm_).first(size)), {"written before"});
  EXPECT_TRUE(writer.write("norm", 12, std::span(norm_).subspan(12)));
  EXPECT_TRUE(writer.write("norm", 0, std::span(norm_).first(4)));
  ASSERT_TRUE(writer.write("weight", 0, weight_));
  ASSERT_TRUE(writer.write("last", 0, last_));
  writer.declare("late", ElementType::kF32, {5});
  expect(writer.write("late", 0, norm_), {"was not declared"});
  expect(writer.commit(), {"\"late\"", "too late"});
}

TEST_F(GgufStreamWriter, RefusesWhatCouldNotBeReadBack) {
  StreamWriter writer = declared();
  writer.declare("norm", ElementType::kF32, {1});
  expect(writer.open(path_), {path_, "\"norm\" was added twice"});
  writer = declared();
  writer.declare("half", ElementType::kQ4_0, {48});
  expect(writer.open(path_), {"half", "no whole number of Q4_0 blocks"});
  writer = StreamWriter();
  for (const char* name : {"a", "b", "c"}) writer.declare(name, ElementType::kI8, {1ull << 61});
  expect(writer.open(path_), {"\"c\"", "2^62 bytes"});
  EXPECT_TRUE(folder_.names().empty());
}

// A file of 2^50 bytes fits on no disk of today: known at once, and nothing is left.
TEST_F(GgufStreamWriter, FullDisk) {
  StreamWriter writer;
  writer.declare("huge", ElementType::kI8, {1ull << 50});
  expect(writer.open(path_), {path_, "cannot make room for"});
  EXPECT_TRUE(folder_.names().empty());
  writer = declared();
  expect(writer.open("/dev/full"), {"/dev/full", "no space left"});
}

TEST_F(GgufStreamWriter, DevicesStayDevices) {
  ASSERT_TRUE(small_model().write("/dev/null"));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

}  // namespace
}  // namespace trimpot::gguf
