#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "io/gguf/gguf.h"
#include "io/test_files.h"

namespace trimpot::gguf {
namespace {

TEST(GgufRoundTrip, KeepsMetadataAndTensors) {
  const TempFolder folder;
  ASSERT_TRUE(small_model().write(folder.file("m.gguf")));
  auto opened = File::open(folder.file("m.gguf"));
  ASSERT_TRUE(opened) << opened.error().message;
  const File file = std::move(*opened);  // views must survive the move
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.alignment(), 32u);
  EXPECT_EQ(file.data_offset() % 32, 0u);
  EXPECT_EQ(file.metadata().size(), 8u);
  EXPECT_EQ(file.metadata().front().first, "general.architecture");
  EXPECT_EQ(file.get_string("general.architecture").value(), "llama");
  EXPECT_EQ(file.get_uint("llama.block_count").value(), 2u);
  EXPECT_EQ(file.get_uint("large").value(), 1ull << 40);
  EXPECT_EQ(file.get_float("llama.epsilon").value(), static_cast<double>(1e-5f));
  EXPECT_TRUE(file.get_bool_or("add_bos", false).value());
  const auto tokens = file.get_strings("tokens").value();
  EXPECT_EQ(std::vector(tokens.begin(), tokens.end()),
            (std::vector<std::string_view>{"a", "", "long token"}));
  EXPECT_EQ(file.get_ints("types").value(), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_EQ(file.get_floats("scores").value(), (std::vector<float>{0.5f, -1.0f}));

  ASSERT_EQ(file.tensors().size(), 3u);
  const TensorInfo* weight = file.find_tensor("weight");
  ASSERT_NE(weight, nullptr);
  EXPECT_EQ(weight->type, ElementType::kQ4_1);
  EXPECT_EQ(weight->shape, (std::vector<std::uint64_t>{64, 3}));
  EXPECT_EQ(weight->columns(), 64u);
  EXPECT_EQ(weight->rows(), 3u);
  EXPECT_EQ(weight->bytes, 120u);
  EXPECT_TRUE(std::ranges::equal(file.data(*weight), counted_bytes(120, 2)));
  EXPECT_TRUE(std::ranges::equal(file.data(*file.find_tensor("norm")), counted_bytes(20, 1)));
  EXPECT_TRUE(std::ranges::equal(file.data(*file.find_tensor("last")), counted_bytes(64, 3)));
  EXPECT_EQ(file.find_tensor("absent"), nullptr);
}

// Every value type, the integers at both ends of their range.
TEST(GgufRoundTrip, CopyValueGivesTheSameBytes) {
  Raw raw;
  raw.start(0, 21);
  const auto scalar = [&](std::string_view key, std::uint32_t type, auto value) {
    raw.text(key).u32(type).number(value);
  };
  scalar("u8", 0, std::uint8_t{255});
  scalar("i8", 1, std::int8_t{-128});
  scalar("u16", 2, std::uint16_t{65535});
  scalar("i16", 3, std::int16_t{-32768});
  scalar("u32", 4, std::numeric_limits<std::uint32_t>::max());
  scalar("i32", 5, std::numeric_limits<std::int32_t>::min());
  scalar("f32", 6, 0.1f);
  scalar("bool", 7, std::uint8_t{1});
  raw.text("string").u32(8).text(std::string_view("a\0b", 3));
  scalar("u64", 10, std::numeric_limits<std::uint64_t>::max());
  scalar("i64", 11, std::numeric_limits<std::int64_t>::min());
  scalar("f64", 12, 0.1);
  const auto array = [&](std::string_view key, std::uint32_t type, auto value) {
    raw.text(key).u32(9).u32(type).u64(2).number(value).number(value);
  };
  array("[u8]", 0, std::uint8_t{200});
  array("[i16]", 3, std::int16_t{-5});
  array("[u32]", 4, 4000000000u);
  array("[f32]", 6, 0.25f);
  array("[bool]", 7, std::uint8_t{1});
  array("[u64]", 10, std::numeric_limits<std::uint64_t>::max());
  array("[f64]", 12, 0.5);
  raw.text("[string]").u32(9).u32(8).u64(2).text("x").text("");
  raw.text("[empty]").u32(9).u32(8).u64(0);
  raw.pad(32);
  const TempFolder folder;
  write_file(folder.file("in.gguf"), raw.bytes());
  const auto file = File::open(folder.file("in.gguf"));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->get_ints("[u32]").value()[1], 4000000000);
  EXPECT_EQ(file->get_floats("[f64]").value()[1], 0.5f);
  EXPECT_EQ(file->get_string("string").value(), std::string("a\0b", 3));
  Writer writer;
  for (const auto& [key, value] : file->metadata()) writer.copy_value(key, value);
  ASSERT_TRUE(writer.write(folder.file("out.gguf")));
  EXPECT_EQ(read_file(folder.file("out.gguf")), raw.bytes());
}

TEST(GgufRoundTrip, HonoursTheAlignment) {
  Writer writer = small_model();
  writer.set_uint32("general.alignment", 256);
  const TempFolder folder;
  ASSERT_TRUE(writer.write(folder.file("m.gguf")));
  const auto file = File::open(folder.file("m.gguf"));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->alignment(), 256u);
  for (const TensorInfo& tensor : file->tensors()) EXPECT_EQ(tensor.offset % 256, 0u);
  EXPECT_TRUE(std::ranges::equal(file->data(*file->find_tensor("last")), counted_bytes(64, 3)));
}

TEST(GgufRoundTrip, SettingAgainReplaces) {
  Writer writer;
  writer.set_uint32("first", 1);
  writer.set_uint32("second", 2);
  writer.set_string("first", "new");
  const TempFolder folder;
  ASSERT_TRUE(writer.write(folder.file("m.gguf")));
  const auto file = File::open(folder.file("m.gguf"));
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->metadata().size(), 2u);
  EXPECT_EQ(file->metadata()[0].first, "first");
  EXPECT_EQ(file->get_string("first").value(), "new");
}

TEST(GgufRoundTrip, ReadsVersion2AndTensorsOfNoAxis) {
  Raw raw;
  raw.start(1, 0, 2).tensor("scalar", {}, 0, 0).pad(32).data(4);
  const TempFolder folder;
  write_file(folder.file("v2.gguf"), raw.bytes());
  const auto file = File::open(folder.file("v2.gguf"));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->version(), 2u);
  EXPECT_EQ(file->tensors()[0].bytes, 4u);
  EXPECT_EQ(file->tensors()[0].columns(), 1u);
}

// Sizes as ggml's type table has them; two tensors each, so that a wrong size leaves a gap.
TEST(GgufRoundTrip, OpensTypesThatAreOnlyCarried) {
  constexpr struct {
    std::uint32_t id;
    const char* name;
    std::uint64_t elements, bytes;
  } kCarried[] = {{10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},
                  {13, "Q5_K", 256, 176},   {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},
                  {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98},
                  {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
                  {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},
                  {25, "I16", 1, 2},        {26, "I32", 1, 4},        {27, "I64", 1, 8},
                  {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},   {34, "TQ1_0", 256, 54},
                  {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},
                  {41, "Q1_0", 128, 18}};
  const TempFolder folder;
  for (const auto& type : kCarried) {
    const std::uint64_t bytes = 64 * type.bytes;  // a multiple of the alignment
    write_file(folder.file("m.gguf"), Raw()
                                          .start(2, 0)
                                          .tensor("a", {8 * type.elements, 8}, type.id, 0)
                                          .tensor("b", {type.elements}, type.id, bytes)
                                          .pad(32)
                                          .data(bytes + type.bytes)
                                          .bytes());
    const auto file = File::open(folder.file("m.gguf"));
    ASSERT_TRUE(file) << file.error().message;
    const ElementTypeInfo info = element_type_info(file->tensors()[0].type);
    EXPECT_EQ(info.name, type.name);
    EXPECT_FALSE(info.computable);
    EXPECT_EQ(file->tensors()[1].bytes, type.bytes);
  }
}

TEST(GgufWriter, RefusesWhatCouldNotBeReadBack) {
  const TempFolder folder;
  const std::string path = folder.file("bad.gguf");
  const auto message_of = [&](const Writer& writer) {
    const Status status = writer.write(path);
    return status ? std::string("no error") : status.error().message;
  };
  const auto expect = [&](const Writer& writer, std::string_view name, std::string_view text) {
    const std::string message = message_of(writer);
    EXPECT_NE(message.find(path), std::string::npos) << message;
    EXPECT_NE(message.find(name), std::string::npos) << message;
    EXPECT_NE(message.find(text), std::string::npos) << message;
  };
  Writer writer = small_model();
  writer.add_tensor("short", ElementType::kF32, {4}, counted_bytes(15));
  expect(writer, "short", "15 bytes of data, 16 are needed");
  writer = small_model();
  writer.add_tensor("norm", ElementType::kF32, {4}, counted_bytes(16));
  expect(writer, "norm", "twice");
  writer = small_model();
  writer.add_tensor("half", ElementType::kQ4_0, {48}, counted_bytes(27));
  expect(writer, "half", "no whole number of Q4_0 blocks");
  writer = small_model();
  writer.add_tensor(std::string(64, 'n'), ElementType::kF32, {1}, counted_bytes(4));
  expect(writer, "nnnn", "from 1 to 63 bytes");
  writer = small_model();
  writer.set_uint32("general.alignment", 48);
  expect(writer, "general.alignment", "power of two");
  writer = small_model();
  writer.set_uint32("", 1);
  expect(writer, "key \"\"", "must have from 1");
  writer = small_model();
  Value wrong;
  wrong.type = ValueType::kU8;
  wrong.scalar = std::uint64_t{300};
  writer.copy_value("wrong", wrong);
  expect(writer, "wrong", "does not match its type");
  EXPECT_TRUE(folder.names().empty());
}

TEST(GgufGetters, NameFileKeyAndWhatIsNeeded) {
  const TempFolder folder;
  const std::string path = folder.file("m.gguf");
  Writer writer = small_model();
  Value negative;
  negative.type = ValueType::kI32;
  negative.scalar = std::int64_t{-7};
  writer.copy_value("negative", negative);
  ASSERT_TRUE(writer.write(path));
  const auto file = File::open(path);
  ASSERT_TRUE(file) << file.error().message;
  const auto expect = [&](const auto& result, std::string_view key, std::string_view text) {
    ASSERT_FALSE(result);
    const std::string& message = result.error().message;
    EXPECT_TRUE(message.starts_with(path)) << message;
    EXPECT_NE(message.find(key), std::string::npos) << message;
    EXPECT_NE(message.find(text), std::string::npos) << message;
  };
  expect(file->get_uint("absent"), "absent", "missing");
  expect(file->get_uint("negative"), "negative", "from 0 up");
  expect(file->get_uint("tokens"), "tokens", "an array of string, but an integer");
  expect(file->get_uint_or("llama.epsilon", 3), "llama.epsilon", "of type f32, but an integer");
  expect(file->get_float("add_bos"), "add_bos", "floating-point");
  expect(file->get_bool_or("large", true), "large", "a bool");
  expect(file->get_string("types"), "types", "a string");
  expect(file->get_strings("types"), "types", "an array of strings");
  expect(file->get_ints("scores"), "scores", "an array of integers");
  expect(file->get_floats("types"), "types", "floating-point");
  EXPECT_EQ(file->get_uint_or("absent", 9).value(), 9u);
  EXPECT_EQ(file->get_float_or("absent", 0.5).value(), 0.5);
  EXPECT_EQ(file->get_string_or("absent", "x").value(), "x");
  EXPECT_TRUE(file->get_bool_or("absent", true).value());
}

}  // namespace
}  // namespace trimpot::gguf
