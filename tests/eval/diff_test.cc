#include "eval/diff.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/half.h"
#include "format/ggml_blocks.h"
#include "io/gguf/gguf.h"

namespace trimpot {
namespace {

using Bytes = std::vector<std::byte>;

struct TestTensor {
  std::string name;
  ElementType type;
  std::vector<std::uint64_t> shape;
  Bytes data;
};

// Blocks with scale 2, offset -3 and codes that count.
Bytes blocks(ElementType type, std::size_t count) {
  const BlockFormat format = block_format(type);
  Bytes data(count * static_cast<std::size_t>(format.bytes));
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 5);
  for (std::size_t at = 0; at < data.size(); at += static_cast<std::size_t>(format.bytes)) {
    const f16 scale = f32_to_f16(2.0f), offset = f32_to_f16(-3.0f);
    std::memcpy(data.data() + at + format.scale_offset, &scale, 2);
    if (format.offset_offset >= 0) std::memcpy(data.data() + at + format.offset_offset, &offset, 2);
  }
  return data;
}

Bytes floats(const std::vector<float>& values) {
  Bytes data(values.size() * sizeof(float));
  std::memcpy(data.data(), values.data(), data.size());
  return data;
}

void put_f16(Bytes& data, std::size_t at, float value) {
  const f16 bits = f32_to_f16(value);
  std::memcpy(data.data() + at, &bits, sizeof bits);
}

// Two files that are the same until a test changes B.
class Diff : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "trimpot-diff-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    // Five floats: 12 bytes of padding follow.
    a_ = {{"norm", ElementType::kF32, {5}, floats({1, 2, 0, -4, 5})},
          {"weight", ElementType::kQ4_1, {64, 3}, blocks(ElementType::kQ4_1, 6)},
          {"half", ElementType::kF16, {4}, Bytes(8)}};
    for (int i = 0; i < 4; ++i) put_f16(a_[2].data, static_cast<std::size_t>(i) * 2, 1.0f);
    b_ = a_;
    for (gguf::Writer* writer : {&a_metadata_, &b_metadata_}) {
      writer->set_string("general.architecture", "llama");
      writer->set_float32("nan", std::numeric_limits<float>::quiet_NaN());
      writer->set_strings("tokens", {"a", "b", "c"});
      writer->set_int32s("types", {1, 2, 3});
    }
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const char* name) const { return folder_ + "/" + name; }
  void write() {
    const auto write_one = [&](gguf::Writer writer, const std::vector<TestTensor>& tensors,
                               const char* name) {
      for (const TestTensor& t : tensors) writer.add_tensor(t.name, t.type, t.shape, t.data);
      const auto status = writer.write(path(name));
      ASSERT_TRUE(status) << status.error().message;
    };
    write_one(a_metadata_, a_, "a.gguf");
    write_one(b_metadata_, b_, "b.gguf");
  }
  FileDifference diff_written() {
    const auto a = gguf::File::open(path("a.gguf")), b = gguf::File::open(path("b.gguf"));
    EXPECT_TRUE(a) << a.error().message;
    EXPECT_TRUE(b) << b.error().message;
    return diff_files(*a, *b);
  }
  FileDifference diff() {
    write();
    return diff_written();
  }

  std::string folder_;
  std::vector<TestTensor> a_, b_;
  gguf::Writer a_metadata_, b_metadata_;
};

TEST_F(Diff, IdenticalFiles) {
  const FileDifference d = diff();
  EXPECT_TRUE(d.identical());
  EXPECT_FALSE(d.only_scales_and_offsets());
  EXPECT_EQ(d.compared, 3u);
  EXPECT_TRUE(d.metadata.empty());  // a NaN is the same as itself
  EXPECT_EQ(summarize(d), "the files are identical");
}

TEST_F(Diff, ScalesAndOffsetsWithTheirChanges) {
  // Block 1: scale 2 -> 3 (one byte of the f16: 0x4000 -> 0x4200); block 4: offset -3 -> -1.5
  // (0xc200 -> 0xbe00).
  put_f16(b_[1].data, 20, 3.0f);
  put_f16(b_[1].data, 82, -1.5f);
  const FileDifference d = diff();
  ASSERT_EQ(d.tensors.size(), 1u);
  const TensorDifference& t = d.tensors[0];
  EXPECT_EQ(t.name, "weight");
  EXPECT_EQ(t.scale_bytes, 1u);
  EXPECT_EQ(t.offset_bytes, 1u);
  EXPECT_EQ(t.code_bytes, 0u);
  EXPECT_EQ(t.scales.count, 6u);
  EXPECT_EQ(t.scales.changed, 1u);
  EXPECT_DOUBLE_EQ(t.scales.largest_relative, 0.5);
  EXPECT_DOUBLE_EQ(t.scales.rms_relative, std::sqrt(0.25 / 6));
  EXPECT_EQ(t.offsets.changed, 1u);
  EXPECT_DOUBLE_EQ(t.offsets.largest_relative, 0.5);
  EXPECT_TRUE(d.only_scales_and_offsets());
  EXPECT_EQ(summarize(d),
            "only scales and offsets differ: 1 of 3 tensors; codes, header and size are the same");
}

// Every byte of a block counts as what it is, in every type: a fifth bit is a code.
// What the tensors of our own files hold is in their names (model/stored.h).
TEST_F(Diff, PartsOfOwnFiles) {
  const auto own = [](const char* name, ElementType type, std::size_t bytes) {
    return TestTensor{name, type, {bytes / (type == ElementType::kI8 ? 1 : 2)}, Bytes(bytes)};
  };
  a_ = {own("blk.0.attn_q.codes", ElementType::kI8, 64),
        own("blk.0.attn_q.scales", ElementType::kF16, 8),
        own("blk.0.attn_q.zeros", ElementType::kF16, 8),
        own("blk.0.attn_q.weak", ElementType::kF16, 16)};
  const auto changed = [&](std::initializer_list<std::size_t> tensors) {
    b_ = a_;
    for (const std::size_t tensor : tensors) b_[tensor].data[3] = std::byte{1};
    return diff();
  };
  FileDifference d = changed({3});
  EXPECT_EQ(d.weak_bytes, 1u);
  EXPECT_TRUE(d.only_tuned());
  EXPECT_FALSE(d.only_scales_and_offsets());
  EXPECT_EQ(d.tensors[0].dense.changed, 1u);
  EXPECT_EQ(summarize(d),
            "only weak columns differ: 1 of 4 tensors; codes, header and size are the same");
  d = changed({1, 2});
  EXPECT_TRUE(d.only_scales_and_offsets());
  EXPECT_EQ(d.offset_bytes, 1u);
  EXPECT_EQ(
      summarize(d),
      "only scales and zero-points differ: 2 of 4 tensors; codes, header and size are the same");
  d = changed({0, 3});
  EXPECT_FALSE(d.only_tuned());
  EXPECT_EQ(d.code_bytes, 1u);
  EXPECT_EQ(summarize(d),
            "weak columns and codes differ: 2 of 4 tensors; header and size are the same");
}

TEST_F(Diff, EveryByteOfEveryBlockType) {
  for (const ElementType type : {ElementType::kQ4_0, ElementType::kQ4_1, ElementType::kQ5_0,
                                 ElementType::kQ5_1, ElementType::kQ8_0}) {
    const BlockFormat format = block_format(type);
    a_[1] = {"weight", type, {64, 2}, blocks(type, 4)};
    for (int byte = 0; byte < format.bytes; ++byte) {
      b_ = a_;
      b_[1].data[static_cast<std::size_t>(2 * format.bytes + byte)] ^= std::byte{1};
      const FileDifference d = diff();
      const bool scale = byte / 2 == format.scale_offset / 2;
      const bool offset = format.offset_offset >= 0 && byte / 2 == format.offset_offset / 2;
      SCOPED_TRACE(std::string(element_type_info(type).name) + " byte " + std::to_string(byte));
      EXPECT_EQ(d.scale_bytes, scale ? 1u : 0u);
      EXPECT_EQ(d.offset_bytes, offset ? 1u : 0u);
      EXPECT_EQ(d.code_bytes, scale || offset ? 0u : 1u);
      EXPECT_EQ(d.only_scales_and_offsets(), scale || offset);
    }
  }
}

// Of types that are only carried, bytes are compared and no numbers made up.
TEST_F(Diff, CarriedTypes) {
  a_[1] = {"weight", ElementType::kQ4_K, {256, 2}, Bytes(288)};
  a_[2] = {"indices", ElementType::kI32, {5}, Bytes(20)};
  b_ = a_;
  b_[1].data[287] = b_[2].data[0] = b_[2].data[19] = std::byte{1};
  const FileDifference d = diff();
  ASSERT_EQ(d.tensors.size(), 2u);
  EXPECT_EQ(d.code_bytes, 1u);
  EXPECT_EQ(d.dense_bytes, 2u);
  for (const TensorDifference& tensor : d.tensors)
    EXPECT_EQ(tensor.scales.count + tensor.offsets.count + tensor.dense.count, 0u);
  EXPECT_EQ(summarize(d),
            "codes and dense tensors differ: 2 of 3 tensors; header and size are the same");
}

TEST_F(Diff, DenseTensorsAndNumbersWithoutARatio) {
  b_[0].data = floats({1, 3, 7, -4, 5});  // 2 -> 3, and 0 -> 7, which has no ratio
  put_f16(b_[2].data, 2, std::numeric_limits<float>::infinity());
  const FileDifference d = diff();
  ASSERT_EQ(d.tensors.size(), 2u);
  const ValueChange& norm = d.tensors[0].dense;
  EXPECT_EQ(norm.changed, 2u);
  EXPECT_EQ(norm.without_ratio, 1u);
  EXPECT_DOUBLE_EQ(norm.largest_absolute, 7);
  EXPECT_DOUBLE_EQ(norm.largest_relative, 0.5);
  const ValueChange& half = d.tensors[1].dense;
  EXPECT_EQ(half.changed, 1u);
  EXPECT_EQ(half.without_ratio, 1u);
  EXPECT_EQ(half.largest_absolute, 0);
  EXPECT_GT(d.dense_bytes, 0u);
  EXPECT_FALSE(d.only_scales_and_offsets());
  EXPECT_EQ(summarize(d),
            "dense tensors differ: 2 of 3 tensors; codes, header and size are the same");
}

TEST_F(Diff, ScaleFromZero) {
  put_f16(a_[1].data, 0, 0.0f);
  const FileDifference d = diff();
  ASSERT_EQ(d.tensors.size(), 1u);
  EXPECT_EQ(d.tensors[0].scales.changed, 1u);
  EXPECT_EQ(d.tensors[0].scales.without_ratio, 1u);
  EXPECT_EQ(d.tensors[0].scales.largest_relative, 0);
}

// Contents are compared in pieces of about 1 MiB: nothing may be lost or counted twice at a seam.
TEST_F(Diff, LargeTensors) {
  const std::size_t count = 160'000, piece = (1u << 20) / 20;  // blocks of 20 bytes, 3 MiB
  a_[1] = {"weight", ElementType::kQ4_1, {32, count}, blocks(ElementType::kQ4_1, count)};
  b_ = a_;
  for (const std::size_t block : {piece - 1, piece, 2 * piece - 1, 2 * piece, count - 1})
    put_f16(b_[1].data, block * 20, 3.0f);
  b_[1].data.back() ^= std::byte{1};
  const FileDifference d = diff();
  ASSERT_EQ(d.tensors.size(), 1u);
  EXPECT_EQ(d.tensors[0].scales.count, count);
  EXPECT_EQ(d.tensors[0].scales.changed, 5u);
  EXPECT_EQ(d.tensors[0].offsets.count, count);
  EXPECT_EQ(d.code_bytes, 1u);
  EXPECT_DOUBLE_EQ(d.tensors[0].scales.rms_relative,
                   std::sqrt(5 * 0.25 / static_cast<double>(count)));
}

TEST_F(Diff, Metadata) {
  a_metadata_.set_string("general.name", "before");
  b_metadata_.set_string("general.name", "after");
  a_metadata_.set_uint32("gone", 7);
  b_metadata_.set_strings("new", {"x"});
  a_metadata_.set_strings("list", {"same", "old"});
  b_metadata_.set_strings("list", {"same", "n\"ew"});
  a_metadata_.set_int32s("numbers", {1, 2, 3});
  b_metadata_.set_int32s("numbers", {1, 2, 4});
  a_metadata_.set_string("long", std::string(100, 'x') + "1");
  b_metadata_.set_string("long", std::string(100, 'x') + "2");
  const FileDifference d = diff();
  EXPECT_FALSE(d.same_header);
  ASSERT_EQ(d.metadata.size(), 6u);
  EXPECT_EQ(d.metadata[0].key, "general.name");
  EXPECT_EQ(d.metadata[0].a, "\"before\"");
  EXPECT_EQ(d.metadata[0].b, "\"after\"");
  EXPECT_EQ(d.metadata[1].key, "gone");
  EXPECT_EQ(d.metadata[1].a, "7");
  EXPECT_FALSE(d.metadata[1].b);
  EXPECT_EQ(d.metadata[2].a, "an array of 2 strings; element 1 is \"old\"");
  EXPECT_EQ(d.metadata[2].b, "element 1 is \"n\\x22ew\"");
  EXPECT_EQ(d.metadata[3].b, "other numbers from element 2 on");
  EXPECT_NE(d.metadata[4].a, d.metadata[4].b);  // though what is shown of them is the same
  EXPECT_LT(d.metadata[4].a->size(), 80u);
  EXPECT_EQ(d.metadata[5].key, "new");
  EXPECT_FALSE(d.metadata[5].a);
  EXPECT_TRUE(d.tensors.empty());
  EXPECT_NE(summarize(d).find("header"), std::string::npos);
}

TEST_F(Diff, TensorsThatCannotBeCompared) {
  b_[0].name = "other";
  b_[1].shape = {192, 1};
  const FileDifference d = diff();
  EXPECT_EQ(d.only_in_a, std::vector<std::string>{"norm"});
  EXPECT_EQ(d.only_in_b, std::vector<std::string>{"other"});
  ASSERT_EQ(d.forms.size(), 1u);
  EXPECT_EQ(d.forms[0].a, "Q4_1 [64, 3]");
  EXPECT_EQ(d.forms[0].b, "Q4_1 [192, 1]");
  EXPECT_EQ(d.compared, 1u);
  EXPECT_FALSE(d.identical());
  EXPECT_FALSE(d.same_header);
  EXPECT_EQ(summarize(d),
            "header differs; tensors of another type or shape: 1, only in A: 1, only "
            "in B: 1; size is the same");
}

// "Identical" is a promise about every byte, also of those between tensors.
TEST_F(Diff, PaddingAndSize) {
  write();
  const auto a = gguf::File::open(path("a.gguf"));
  ASSERT_TRUE(a);
  {
    std::fstream file(path("b.gguf"), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(a->tensors()[0].offset + a->tensors()[0].bytes));
    file.put('\x7f');
  }
  FileDifference d = diff_written();
  EXPECT_EQ(d.padding_bytes, 1u);
  EXPECT_FALSE(d.identical());
  EXPECT_EQ(summarize(d), "bytes between tensors differ; codes, header and size are the same");
  std::ofstream(path("b.gguf"), std::ios::app | std::ios::binary) << "more";
  d = diff_written();
  EXPECT_FALSE(d.same_size);
  EXPECT_FALSE(d.identical());
  EXPECT_EQ(summarize(d), "size differs; codes and header are the same");
}

}  // namespace
}  // namespace trimpot
