#include "tune/fit.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "kernels/kernels.h"
#include "support/toy_model.h"
#include "tune/methods.h"
#include "tune/own_files.h"

namespace trimpot {
namespace {

constexpr ScaleGranularity kGranularities[] = {ScaleGranularity::kGroup, ScaleGranularity::kRow};

class Fit : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "trimpot-fit-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  gguf::File write(const ToyFile& toy) {
    const std::string path = folder_ + "/toy.gguf";
    const auto status = toy.write(path);
    EXPECT_TRUE(status) << status.error().message;
    auto file = gguf::File::open(path);
    EXPECT_TRUE(file) << file.error().message;
    return std::move(*file);
  }
  void put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(folder_ + path).parent_path());
    std::ofstream(folder_ + path) << text;
  }

  std::string folder_;
};

std::size_t item(const FitReport& report, std::string_view name) {
  for (const FitItem& entry : report.items)
    if (entry.name == name) return entry.bytes;
  ADD_FAILURE() << "no item " << name;
  return 0;
}

// What make_method() and tuning_size() say of one method on one file: the same counts, or both an
// error. And the same weights in memory.
void expect_same_size(const std::string& path, const SizeOptions& options) {
  SCOPED_TRACE(options.method);
  const auto file = gguf::File::open(path);
  ASSERT_TRUE(file) << file.error().message;
  Compute compute(*usable_kernels().front(), Precision::kDefault, 1);
  auto model = load_model(*file, compute.team);
  ASSERT_TRUE(model) << model.error().message;
  MethodOptions how;
  how.method = options.method;
  how.granularity = options.granularity;
  how.low_rank.rank = options.rank;
  how.scheme = options.scheme;
  how.target_modules = options.target_modules;
  if (options.weak_columns > 0) {
    how.new_columns.resize((*model)->linear_count());
    for (std::size_t index = 0; index < how.new_columns.size(); ++index)
      if (is_target(options.target_modules, index))
        for (std::int32_t i = 0; i < options.weak_columns; ++i) how.new_columns[index].push_back(i);
  }
  const auto size = tuning_size(tunable_linears(*file), options);
  const auto method = make_method(compute, **model, how);
  ASSERT_EQ(size.has_value(), method.has_value())
      << (size ? method.error().message : size.error().message);
  if (!size) return;
  EXPECT_EQ(size->trainable, (*method)->trainable());
  EXPECT_EQ(size->padded, (*method)->parameters().size());
  const auto tensors = (*method)->adapter_tensors();
  EXPECT_EQ(size->tensors > 0, tensors.has_value());
  if (tensors) {
    EXPECT_EQ(size->tensors, tensors->size());
    std::size_t bytes = 0;
    for (const AdapterTensor& tensor : *tensors) bytes += tensor.bytes.size();
    EXPECT_EQ(size->adapter_bytes, bytes);
  }
  // The weights that the run holds, as the method made them.
  FitOptions fit;
  fit.max_seq_length = 64;
  fit.tuning = options;
  const auto report = estimate_fit(*file, fit);
  ASSERT_TRUE(report) << report.error().message;
  std::size_t weights = item(*report, "weights");
  if (is_low_rank(options.method)) weights += item(*report, "low-rank pairs");
  const std::size_t norms = (2 * 2 + 1) * 64 * 4;  // two layers of hidden width 64
  std::size_t orders = 0;
  for (std::size_t index = 0; index < (*model)->linear_count(); ++index) {
    const Linear& linear = (*model)->linear(index);
    if (linear.weight_columns) orders += 4 * linear.weight_columns->size();
    if (linear.weak_columns) orders += 4 * linear.weak_columns->size();
  }
  EXPECT_EQ(weights, (*model)->weight_bytes() + norms + orders);
}

// From names and shapes alone: what every method itself finds in the loaded model. Rows that are no
// multiple of 16 and formats with and without offsets, so that padding and kinds matter.
TEST_F(Fit, CountsWhatTheMethodLearns) {
  ToyOptions toy;
  toy.feed_forward = 64;
  toy.heads = 5;
  toy.kv_heads = 1;
  toy.head_dim = 32;
  toy.linear_types = {ElementType::kQ4_1, ElementType::kQ8_0, ElementType::kF16, ElementType::kQ4_0,
                      ElementType::kQ5_1, ElementType::kQ5_0, ElementType::kQ4_1};
  write(toy_file(toy));
  const std::vector<std::vector<std::string>> module_sets{{}, {"q_proj", "k_proj", "v_proj"}};
  for (const std::string& method : method_names())
    for (const auto& modules : module_sets)
      for (const ScaleGranularity granularity : kGranularities) {
        SizeOptions options{method, granularity, modules, 5, 0, {}};
        expect_same_size(folder_ + "/toy.gguf", options);
      }
  SizeOptions fresh;
  fresh.method = "qeft";
  fresh.weak_columns = 3;
  expect_same_size(folder_ + "/toy.gguf", fresh);
}

// Our own files: groups of codes, symmetric and with zero-points, weak columns anywhere or last.
TEST_F(Fit, CountsWhatTheMethodLearnsOfOwnFiles) {
  const OwnOptions kinds[] = {
      {{4, 32, ZeroKind::kInteger}},          {{3, kWholeRow, ZeroKind::kSymmetric}},
      {{8, 64, ZeroKind::kOffset}},           {{4, 32, ZeroKind::kInteger}, 5},
      {{4, 32, ZeroKind::kInteger}, 5, 1, 3},
  };
  for (const OwnOptions& kind : kinds) {
    write(own_file(dense_toy(), kind));
    for (const std::string& method : method_names()) {
      SizeOptions options;
      options.method = method;
      options.rank = 3;
      options.scheme = {3, 32, ZeroKind::kInteger};
      expect_same_size(folder_ + "/toy.gguf", options);
    }
  }
}

// Reading the columns in another order takes copies of the inputs; weak columns that are the last
// ones do not.
TEST_F(Fit, GatheredInputs) {
  FitOptions options;
  options.max_seq_length = 64;
  options.tuning.method = "qeft";
  const auto forward = [&](const ToyFile& toy) {
    const auto report = estimate_fit(write(toy), options);
    EXPECT_TRUE(report) << report.error().message;
    return report ? item(*report, "one layer, forward") : 0;
  };
  const OwnOptions scattered{{4, 32, ZeroKind::kInteger}, 5};
  ToyFile last = own_file(dense_toy(), scattered);
  for (ToyTensor& tensor : last.tensors) {
    if (!tensor.name.ends_with(".weak_columns")) continue;
    const std::int32_t columns = tensor.name.find("ffn_down") != std::string::npos ? 96 : 64;
    std::vector<std::int32_t> numbers(5);
    std::iota(numbers.begin(), numbers.end(), columns - 5);
    tensor.data = raw(numbers);
  }
  // Robust and weak columns of four inputs: q, k, v share one order, and so do gate and up.
  const std::size_t copies = 512 * (3 * (59 + 5) + 91 + 5) * 4;
  // Weak columns that come last are rounded beside the others, for both of their weights' terms.
  const auto kernels = select_kernels();
  ASSERT_TRUE(kernels) << kernels.error().message;
  const std::size_t beside = (*kernels)->tiled ? 512 * 4 * 2 * 6 * 2 : 0;
  EXPECT_NEAR(static_cast<double>(forward(own_file(dense_toy(), scattered))),
              static_cast<double>(forward(last) - beside + copies), 8 * 4096);
}

// The parts that only some runs have.
TEST_F(Fit, WhatElseARunTakes) {
  ToyOptions toy;
  toy.context = 4096;
  const gguf::File file = write(toy_file(toy));
  FitOptions options;
  options.tuning.method = "lora";
  options.tuning.rank = 8;
  const auto plain = estimate_fit(file, options);
  ASSERT_TRUE(plain) << plain.error().message;
  FitOptions dropping = options;
  dropping.dropout = true;  // a copy of the widest input, and its gradient
  EXPECT_NEAR(static_cast<double>(item(*estimate_fit(file, dropping), "one layer, backward")),
              static_cast<double>(item(*plain, "one layer, backward") + 2 * 512 * 96 * 4),
              4 * 4096);
  FitOptions adapter = options;
  adapter.adapter = true;
  EXPECT_EQ(item(*estimate_fit(file, adapter), "adapter"),
            tuning_size(tunable_linears(file), options.tuning)->adapter_bytes);
  FitOptions taught = options;
  taught.teacher = &file;
  const auto with_teacher = estimate_fit(file, taught);
  EXPECT_GT(item(*with_teacher, "teacher"), item(*plain, "weights"));
  EXPECT_GT(item(*with_teacher, "teacher, forward"), item(*plain, "one layer, forward"));
  options.tuning.rank = 64;
  options.available = 1;
  options.tuning.target_modules = {"q_proj"};
  EXPECT_EQ(estimate_fit(file, options)->advice.find("no option brings it below"), 0u);
  options.available = estimate_fit(file, options)->total - 1;
  EXPECT_EQ(estimate_fit(file, options)->advice.find("--lora-r 8 would need"), 0u);
}

TEST_F(Fit, NamesThatAreNoLayersAreNotTunable) {
  gguf::Writer writer;
  writer.set_string("general.architecture", "other");
  const std::vector<std::byte> data(20);
  for (const char* name : {"blk.weight", "blk..weight", "blk.0.weight", "blk.attn_q.weight",
                           "blk.0.attn_q.bias", "blk.0.attn_q.weight", "blk.12.ffn_up.weight"})
    writer.add_tensor(name, ElementType::kQ4_1, {32, 1}, data);
  ASSERT_TRUE(writer.write(folder_ + "/names.gguf"));
  const auto file = gguf::File::open(folder_ + "/names.gguf");
  ASSERT_TRUE(file);
  const auto linears = tunable_linears(*file);
  ASSERT_EQ(linears.size(), 2u);
  EXPECT_EQ(linears[0].name, "blk.0.attn_q");
  EXPECT_EQ(linears[1].module, "up_proj");
  const auto report = estimate_fit(*file, {});
  ASSERT_FALSE(report);
  EXPECT_NE(report.error().message.find("\"other\""), std::string::npos);
}

TEST_F(Fit, TypesThatAreOnlyCarried) {
  ToyFile toy = toy_file({});
  ToyTensor& weight = toy.tensor("blk.0.attn_k.weight");
  const auto info = element_type_info(ElementType::kIQ4_NL);
  weight.type = info.type;
  weight.data.resize(weight.shape[0] * weight.shape[1] / info.block_elements * info.block_bytes);
  const auto report = estimate_fit(write(toy), {});
  ASSERT_FALSE(report);
  EXPECT_NE(report.error().message.find("tensor blk.0.attn_k.weight: type IQ4_NL cannot be"),
            std::string::npos)
      << report.error().message;
}

TEST_F(Fit, WeightsAsTheyArePacked) {
  for (const ElementType type : {ElementType::kQ4_1, ElementType::kQ5_0, ElementType::kQ8_0}) {
    ToyOptions toy;
    toy.linear_types = ToyOptions::all_linears(type);
    toy.linear_types[3] = ElementType::kF32;
    toy.head = ElementType::kF16;
    auto loaded = load_toy(toy_file(toy), folder_ + "/toy.gguf");
    ASSERT_TRUE(loaded) << loaded.error().message;
    FitOptions options;
    options.max_seq_length = 256;
    const auto report = estimate_fit(loaded->file, options);
    ASSERT_TRUE(report) << report.error().message;
    const std::size_t norms = (2 * 2 + 1) * 64 * 4;  // two layers of hidden width 64
    EXPECT_EQ(item(*report, "weights"), loaded->model->weight_bytes() + norms);
  }
}

TEST_F(Fit, MoreTakesMore) {
  ToyOptions toy;
  toy.context = 4096;
  const gguf::File file = write(toy_file(toy));
  FitOptions options;
  const auto base = estimate_fit(file, options);
  ASSERT_TRUE(base) << base.error().message;
  std::size_t total = 0;
  for (const FitItem& entry : base->items) total += entry.bytes;
  EXPECT_EQ(base->total, total);

  FitOptions longer = options;
  longer.max_seq_length = 1024;
  // Two layers and one: 3 x 1024 x 64 floats, and d_x.
  EXPECT_NEAR(static_cast<double>(item(*estimate_fit(file, longer), "layer inputs")),
              4.0 * 1024 * 64 * 4, 3 * 4096);
  FitOptions shorter = options;
  shorter.max_seq_length = 64;
  shorter.sequences_per_step = 8;  // eight sequences of 64 are put together
  EXPECT_EQ(item(*estimate_fit(file, shorter), "layer inputs"), item(*base, "layer inputs"));
  shorter.sequences_per_step = 1;
  EXPECT_LT(item(*estimate_fit(file, shorter), "layer inputs"), item(*base, "layer inputs") / 4);
  FitOptions rows = options;
  rows.tuning.granularity = ScaleGranularity::kRow;
  EXPECT_LT(item(*estimate_fit(file, rows), "learned values"), item(*base, "learned values"));
  FitOptions both = options;
  both.tuning.method = "peqa-both";
  EXPECT_EQ(item(*estimate_fit(file, both), "learned values"), 2 * item(*base, "learned values"));
  FitOptions f32 = options;
  f32.precision = Precision::kF32;
  EXPECT_LT(item(*estimate_fit(file, f32), "one layer, forward"),
            item(*base, "one layer, forward"));
}

// The first change that helps, and only one that helps.
TEST_F(Fit, Advice) {
  ToyOptions toy;
  toy.context = 4096;
  const gguf::File file = write(toy_file(toy));
  FitOptions options;
  options.tuning.method = "peqa-both";
  options.max_seq_length = 2048;
  const auto total_of = [&](const char* method, std::int64_t length) {
    FitOptions changed = options;
    changed.tuning.method = method;
    changed.max_seq_length = length;
    return estimate_fit(file, changed)->total;
  };
  const auto advice_for = [&](std::size_t available) {
    FitOptions limited = options;
    limited.available = available;
    const auto report = estimate_fit(file, limited);
    EXPECT_TRUE(report) << report.error().message;
    EXPECT_EQ(report->fits, report->total <= available);
    return report->advice;
  };
  EXPECT_EQ(advice_for(total_of("peqa-both", 2048)), "");
  EXPECT_EQ(advice_for(total_of("peqa", 2048)).find("--method peqa would need"), 0u);
  EXPECT_EQ(
      advice_for(total_of("peqa", 1024)).find("--method peqa --max-seq-length 1024 would need"),
      0u);
  EXPECT_EQ(advice_for(total_of("peqa", 512) - 1)
                .find("--method peqa --max-seq-length 256 --batch-size 1 would need"),
            0u);
  EXPECT_EQ(advice_for(1).find("no option brings it below"), 0u);
}

TEST_F(Fit, Errors) {
  const auto message = [](const Result<FitReport>& report) {
    return report ? std::string("no error") : report.error().message;
  };
  ToyOptions toy;
  FitOptions options;
  options.max_seq_length = 256;
  options.tuning.target_modules = {"lm_head"};
  EXPECT_NE(
      message(estimate_fit(write(toy_file(toy)), options)).find("\"lm_head\" matches nothing"),
      std::string::npos);
  options.tuning.target_modules.clear();
  options.max_seq_length = 257;
  EXPECT_NE(message(estimate_fit(write(toy_file(toy)), options)).find("context of 256"),
            std::string::npos);
  options.max_seq_length = 256;
  toy.linear_types = ToyOptions::all_linears(ElementType::kQ4_0);
  options.tuning.method = "peqa-zero";
  EXPECT_NE(message(estimate_fit(write(toy_file(toy)), options)).find("use --method peqa"),
            std::string::npos);
  toy.linear_types = ToyOptions::all_linears(ElementType::kF16);
  EXPECT_NE(
      message(estimate_fit(write(toy_file(toy)), options)).find("no linear layer is quantized"),
      std::string::npos);
  ToyFile incomplete = toy_file(ToyOptions{});
  incomplete.remove("blk.1.ffn_up.weight");
  EXPECT_NE(
      message(estimate_fit(write(incomplete), options)).find("blk.1.ffn_up.weight is missing"),
      std::string::npos);
}

// Sizes that only the metadata claims: a number that does not fit, not an overflow.
TEST_F(Fit, AbsurdSizes) {
  ToyOptions toy;
  toy.context = 1 << 24;
  for (const char* key :
       {"llama.embedding_length", "llama.feed_forward_length", "llama.attention.head_count_kv"}) {
    ToyFile file = toy_file(toy, key);
    const bool kv = std::string_view(key).ends_with("_kv");
    file.metadata.set_uint32(key, kv ? 4 : 1 << 24);
    FitOptions options;
    options.max_seq_length = 1 << 24;
    options.threads = 1 << 16;
    options.available = std::size_t{1} << 40;
    const auto report = estimate_fit(write(file), options);
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_FALSE(report->fits);
    EXPECT_GT(report->total, options.available);
  }
}

TEST_F(Fit, FreeMemory) {
  EXPECT_FALSE(free_memory(folder_));
  put("/proc/meminfo", "MemTotal: 100 kB\nMemFree: 5 kB\nMemAvailable:   64 kB\n");
  EXPECT_EQ(free_memory(folder_), 64u << 10);

  // Version 2: the limit of a group further up counts too.
  put("/proc/self/cgroup", "0::/user/job\n");
  put("/sys/fs/cgroup/user/job/memory.max", "max\n");
  put("/sys/fs/cgroup/user/job/memory.current", "10000\n");
  EXPECT_EQ(free_memory(folder_), 64u << 10);
  put("/sys/fs/cgroup/user/memory.max", "50000\n");
  put("/sys/fs/cgroup/user/memory.current", "30000\n");
  put("/sys/fs/cgroup/user/memory.stat", "anon 20000\ninactive_file 8000\n");
  EXPECT_EQ(free_memory(folder_), 28000u);
  put("/sys/fs/cgroup/user/memory.current", "70000\n");  // over its limit
  EXPECT_EQ(free_memory(folder_), 0u);

  // Version 1, in a container that shows only the root of the hierarchy.
  put("/proc/self/cgroup", "9:name=systemd:/x\n4:memory:/outer/inner\n");
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n");
  EXPECT_EQ(free_memory(folder_), 64u << 10);
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "41000\n");
  EXPECT_EQ(free_memory(folder_), 40000u);
}

}  // namespace
}  // namespace trimpot
