#include "io/safetensors/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "base/rng.h"
#include "io/test_files.h"

namespace trimpot::safetensors {
namespace {

std::string with_header(std::string_view json, std::size_t data_bytes) {
  return Raw().text(json).data(data_bytes).bytes();
}

class Safetensors : public testing::Test {
 protected:
  Status write_small() {
    return write(path_, {{"method", "peqa"}, {"note", "a \"quoted\"\nline"}},
                 {{"narrow", "I8", {3}, narrow_},
                  {"blk.0.scale", "F16", {2, 3}, scale_},
                  {"empty", "F32", {0, 4}, {}},
                  {"wide", "F32", {}, wide_}});
  }
  void expect(std::string_view json, std::size_t data_bytes,
              std::initializer_list<std::string_view> parts) {
    write_file(path_, with_header(json, data_bytes));
    const auto file = File::open(path_);
    ASSERT_FALSE(file) << "opened: " << json;
    const std::string& message = file.error().message;
    EXPECT_TRUE(message.starts_with(path_ + ": ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_NE(message.find("again"), std::string::npos) << message;
    for (const std::string_view part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << message << "\nlacks: " << part;
  }

  const TempFolder folder_;
  const std::string path_ = folder_.file("t.safetensors");
  const std::vector<std::byte> narrow_ = counted_bytes(3, 1);
  const std::vector<std::byte> scale_ = counted_bytes(12, 2);
  const std::vector<std::byte> wide_ = counted_bytes(4, 3);
};

TEST_F(Safetensors, RoundTrip) {
  const Status status = write_small();
  ASSERT_TRUE(status) << status.error().message;
  auto opened = File::open(path_);
  ASSERT_TRUE(opened) << opened.error().message;
  const File file = std::move(*opened);
  EXPECT_EQ(file.metadata().at("method"), "peqa");
  EXPECT_EQ(file.metadata().at("note"), "a \"quoted\"\nline");
  ASSERT_EQ(file.tensors().size(), 4u);
  const TensorInfo* scale = file.find("blk.0.scale");
  ASSERT_NE(scale, nullptr);
  EXPECT_EQ(scale->dtype, "F16");
  EXPECT_EQ(scale->shape, (std::vector<std::uint64_t>{2, 3}));
  EXPECT_TRUE(std::ranges::equal(file.data(*scale), scale_));
  EXPECT_TRUE(std::ranges::equal(file.data(*file.find("narrow")), narrow_));
  EXPECT_TRUE(std::ranges::equal(file.data(*file.find("wide")), wide_));
  EXPECT_TRUE(file.data(*file.find("empty")).empty());
  EXPECT_EQ(file.find("absent"), nullptr);
  for (const TensorInfo& tensor : file.tensors())
    EXPECT_EQ(tensor.begin % dtype_bytes(tensor.dtype), 0u) << tensor.name;
}

TEST_F(Safetensors, NothingAtAll) {
  ASSERT_TRUE(write(path_, {}, {}));
  EXPECT_EQ(read_file(path_), Raw().text("{}      ").bytes());
  EXPECT_TRUE(File::open(path_));
}

TEST_F(Safetensors, EveryCutIsAnError) {
  ASSERT_TRUE(write_small());
  const std::string whole = read_file(path_);
  MemoryFile changed;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    ASSERT_TRUE(changed.set(whole.substr(0, size)));
    const auto file = File::open(changed.path());
    ASSERT_FALSE(file) << "opened with " << size << " of " << whole.size() << " bytes";
    ASSERT_TRUE(file.error().message.starts_with(changed.path())) << file.error().message;
  }
  ASSERT_TRUE(changed.set(whole + "x"));
  EXPECT_FALSE(File::open(changed.path()));
}

TEST_F(Safetensors, MutationsNeverLeadOutside) {
  ASSERT_TRUE(write_small());
  const std::string whole = read_file(path_);
  const std::size_t header = 8 + static_cast<unsigned char>(whole[0]) +
                             256 * static_cast<std::size_t>(static_cast<unsigned char>(whole[1]));
  ASSERT_LT(header, whole.size());
  MemoryFile changed;
  const CounterRng rng(20240607, 2);
  const std::string_view interesting = "\"{}[]:,0123456789-.eE\\ntu ";
  std::uint64_t draw = 0;
  int opened = 0;
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = whole;
    const std::uint64_t changes = 1 + rng.below(draw++, 3);
    for (std::uint64_t i = 0; i < changes; ++i) {
      const std::size_t at = rng.below(draw++, header);
      bytes[at] = rng.below(draw++, 3) == 0 ? static_cast<char>(rng.below(draw++, 256))
                                            : interesting[rng.below(draw++, interesting.size())];
    }
    ASSERT_TRUE(changed.set(bytes));
    const auto file = File::open(changed.path());
    if (!file) {
      ++refused;
      ASSERT_TRUE(file.error().message.starts_with(changed.path())) << file.error().message;
      ASSERT_EQ(file.error().message.find('\n'), std::string::npos) << file.error().message;
      continue;
    }
    ++opened;
    for (const TensorInfo& tensor : file->tensors()) {
      ASSERT_LE(tensor.begin, tensor.end);
      ASSERT_LE(tensor.end, bytes.size());
      for (const std::byte byte : file->data(tensor)) (void)byte;
    }
  }
  EXPECT_GT(opened, 500);
  EXPECT_GT(refused, 500);
}

TEST_F(Safetensors, HeaderErrors) {
  expect("[]", 0, {"an array, not an object"});
  expect("7", 0, {"not an object"});
  expect("", 0, {"no valid JSON"});
  expect(R"({"a":)", 0, {"no valid JSON"});
  expect(R"({} x)", 0, {"no valid JSON", "byte 12"});
  expect("{\"\xff\":1}", 0, {"no valid JSON"});
  expect(std::string(100000, '['), 0, {"not an object"});
  expect(std::string(R"({"a":)") + std::string(100000, '{'), 0, {"no valid JSON"});
  expect(R"({"a":3})", 0, {"\"a\" is a number, not an object"});
  expect(R"({"__metadata__":{"k":1}})", 0, {"__metadata__ key \"k\"", "not a string"});
  expect(R"({"__metadata__":{"k":"1","k":"2"}})", 0, {"the key \"k\" twice"});
  expect(R"({"__metadata__":{},"__metadata__":{}})", 0, {"__metadata__ is there twice"});
  write_file(path_, Raw().u64(100'000'001).data(100).bytes());
  auto file = File::open(path_);
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message.find("100000001 bytes"), std::string::npos);
  write_file(path_, Raw().u64(101).data(100).bytes());
  file = File::open(path_);
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message.find("cut short"), std::string::npos);
}

TEST_F(Safetensors, TensorErrors) {
  const auto one = [](std::string_view dtype, std::string_view shape, std::string_view offsets) {
    return fmt::format(R"({{"w":{{"dtype":"{}","shape":{},"data_offsets":{}}}}})", dtype, shape,
                       offsets);
  };
  expect(one("F31", "[1]", "[0,4]"), 4, {"tensor \"w\"", "dtype \"F31\" is not known"});
  expect(one("F32", "[-1]", "[0,4]"), 4, {"tensor \"w\"", "shape is a negative number"});
  expect(one("F32", "[1.5]", "[0,4]"), 4, {"tensor \"w\"", "shape is a fraction"});
  expect(one("F32", "[[1]]", "[0,4]"), 4, {"tensor \"w\"", "shape is an array"});
  expect(one("F32", "[1]", "[0,4,8]"), 4, {"tensor \"w\"", "more than two"});
  expect(one("F32", "[1]", "[0]"), 4, {"tensor \"w\"", "no pair of data_offsets"});
  expect(one("F32", "[4294967296,4294967296]", "[0,4]"), 4, {"tensor \"w\"", "overflows"});
  expect(one("F32", "[2]", "[0,4]"), 4, {"tensor \"w\"", "need 8 bytes"});
  expect(one("F32", "[1]", "[4,0]"), 4, {"tensor \"w\"", "end before they begin"});
  expect(one("F32", "[1]", "[4,8]"), 8, {"tensor \"w\"", "hole of 4 bytes"});
  expect(one("F32", "[1]", "[0,4]"), 3, {"tensor \"w\"", "cut short"});
  expect(one("F32", "[1]", "[0,4]"), 5, {"5 bytes of data, but the header describes 4"});
  expect(one("F32", "[1]", "[0,18446744073709551616]"), 4, {"tensor \"w\"", "data_offsets"});
  expect(R"({"w":{"dtype":"F32","shape":[1]}})", 4, {"tensor \"w\" has no pair"});
  expect(R"({"w":{"shape":[1],"data_offsets":[0,4]}})", 4, {"tensor \"w\" has no dtype"});
  expect(R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4, {"tensor \"w\" has no shape"});
  expect(R"({"w":{"dtype":"F32","dtype":"F32"}})", 4, {"tensor \"w\"", "\"dtype\" twice"});
  expect(R"({"w":{"color":"red"}})", 4, {"tensor \"w\"", "unknown field \"color\""});
  expect(R"({"w\n":{"dtype":7}})", 4, {"tensor \"w\\x0a\"", "dtype is a number"});
}

TEST_F(Safetensors, OverlapsHolesAndTwins) {
  const auto two = [](std::string_view second, std::uint64_t begin) {
    return fmt::format(R"({{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},)"
                       R"("{}":{{"dtype":"U8","shape":[4],"data_offsets":[{},{}]}}}})",
                       second, begin, begin + 4);
  };
  write_file(path_, with_header(two("b", 4), 8));
  EXPECT_TRUE(File::open(path_));
  expect(two("b", 3), 8, {"tensor \"b\"", "overlaps"});
  expect(two("b", 0), 4, {"overlaps"});
  expect(two("b", 5), 9, {"tensor \"b\"", "hole of 1 bytes"});
  expect(two("a", 4), 8, {"tensor \"a\" is there twice"});
}

TEST_F(Safetensors, WriterErrors) {
  const auto expect_error = [&](const Status& status, std::string_view part) {
    ASSERT_FALSE(status);
    EXPECT_TRUE(status.error().message.starts_with(path_)) << status.error().message;
    EXPECT_NE(status.error().message.find(part), std::string::npos) << status.error().message;
  };
  expect_error(write(path_, {}, {{"w", "F32", {2}, wide_}}), "\"w\": 4 bytes of data, 8 are");
  expect_error(write(path_, {}, {{"w", "F99", {1}, wide_}}), "\"w\": dtype \"F99\"");
  expect_error(write(path_, {}, {{"w", "F32", {}, wide_}, {"w", "F32", {}, wide_}}), "twice");
  expect_error(write(path_, {}, {{"__metadata__", "F32", {}, wide_}}), "reserved");
  expect_error(write(path_, {{"k", "\xff"}}, {}), "UTF-8");
  EXPECT_TRUE(folder_.names().empty());
  const Status full = write("/dev/full", {}, {});
  ASSERT_FALSE(full);
  EXPECT_NE(full.error().message.find("no space left"), std::string::npos);
}

}  // namespace
}  // namespace trimpot::safetensors
