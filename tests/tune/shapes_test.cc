// The papers' figures: ours must be within 0.5 % or, where few digits are printed, round to them.
#include "tune/shapes.h"

#include <gtest/gtest.h>

#include <cmath>

namespace trimpot {
namespace {

constexpr double kMib = 1 << 20;

ShapeReport report(std::string_view shape, const ShapeOptions& options) {
  const auto found = find_shape(shape);
  EXPECT_TRUE(found) << found.error().message;
  const auto result = fit_shape(*found, options);
  EXPECT_TRUE(result) << result.error().message;
  return result.value_or(ShapeReport{});
}

ShapeOptions with(std::string method, int bits = 0, int weak_columns = 0) {
  ShapeOptions options;
  options.method = std::move(method);
  options.bits = bits;
  options.weak_columns = weak_columns;
  return options;
}

// `unit`: of the last digit that the paper prints.
void expect_printed(double ours, double printed, double unit, const std::string& what) {
  EXPECT_LE(std::fabs(ours - printed), std::max(0.005 * printed, 0.5 * unit))
      << what << ": " << ours << ", the paper has " << printed;
}

// QEFT's "GB" are 1000 MiB.
double qeft_gigabytes(std::int64_t bytes) { return static_cast<double>(bytes) / kMib / 1000; }

TEST(Shapes, ParametersAsPublished) {
  const auto parameters = [](std::string_view shape) {
    return report(shape, with("full")).parameters;
  };
  EXPECT_EQ(parameters("llama-7b"), 6738415616);
  EXPECT_EQ(parameters("llama-13b"), 13015864320);
  EXPECT_EQ(parameters("llama-30b"), 32528943616);
  EXPECT_EQ(parameters("llama-65b"), 65285660672);
  EXPECT_EQ(parameters("llama2-7b"), 6738415616);
  EXPECT_EQ(parameters("llama2-13b"), 13015864320);
  EXPECT_EQ(parameters("llama2-70b"), 68976648192);
}

// PEQA's Table 4, LLaMA-65B: 33.45 GB and 6.80 M against LoRA's 130.57 GB and 10.49 M.
TEST(Shapes, PeqaAgainstLora) {
  const ShapeReport peqa = report("llama-65b", with("peqa", 4));
  EXPECT_NEAR(static_cast<double>(peqa.base_bytes) / 1e9, 33.45, 0.005);
  EXPECT_EQ(peqa.learnable, 6799360);
  EXPECT_EQ(peqa.adapter_bytes, 2 * 6799360);
  ShapeOptions options = with("lora");
  options.lora_r = 4;
  options.target_modules = {"q_proj", "v_proj"};
  const ShapeReport lora = report("llama-65b", options);
  EXPECT_NEAR(static_cast<double>(lora.base_bytes) / 1e9, 130.57, 0.005);
  EXPECT_EQ(lora.learnable, 10485760);
}

TEST(Shapes, TableC) {
  const auto rows = compare_tuning(*find_shape("llama-65b"), {});
  ASSERT_TRUE(rows) << rows.error().message;
  struct Row {
    const char* name;
    double tuning, deployed;  // GB
    bool tunes_fast, runs_fast, switches_fast;
  };
  constexpr Row kPaper[] = {{"Full fine-tuning", 457, 131, false, false, false},
                            {"PEFT", 131, 131, true, false, true},
                            {"PEFT+PTQ", 131, 33, true, true, false},
                            {"PTQ+PEFT", 33, 33, true, false, true},
                            {"PEQA", 33, 33, true, true, true}};
  ASSERT_EQ(rows->size(), std::size(kPaper));
  for (std::size_t i = 0; i < rows->size(); ++i) {
    const TuningRow& ours = (*rows)[i];
    SCOPED_TRACE(ours.name);
    EXPECT_EQ(ours.name, kPaper[i].name);
    // The paper leaves out gradients and moments where few parameters learn.
    const std::int64_t states = kPaper[i].tunes_fast ? 0 : ours.tuning_states;
    EXPECT_NEAR(static_cast<double>(ours.tuning_weights + states) / 1e9, kPaper[i].tuning, 0.5);
    EXPECT_NEAR(static_cast<double>(ours.deployed) / 1e9, kPaper[i].deployed, 0.5);
    EXPECT_EQ(ours.tunes_fast, kPaper[i].tunes_fast);
    EXPECT_EQ(ours.runs_fast, kPaper[i].runs_fast);
    EXPECT_EQ(ours.switches_fast, kPaper[i].switches_fast);
    EXPECT_EQ(ours.switches_fast, ours.switched < 1'000'000'000);
  }
}

struct Figures {
  const char* method;
  int bits, weak_columns;
  double gigabytes[3], millions[3];  // 7B, 13B, 70B; 0: not in the table
};
constexpr const char* kSizes[] = {"llama2-7b", "llama2-13b", "llama2-70b"};

void expect_figures(const Figures& paper, double unit) {
  for (std::size_t i = 0; i < 3; ++i) {
    const ShapeReport ours = report(kSizes[i], with(paper.method, paper.bits, paper.weak_columns));
    const std::string what =
        fmt::format("{} {} k={} {} bits", kSizes[i], paper.method, paper.weak_columns, paper.bits);
    if (paper.gigabytes[i] > 0)
      expect_printed(qeft_gigabytes(ours.base_bytes), paper.gigabytes[i], unit, what);
    // Millions are cut off in places (107.48 as 107): a whole unit.
    if (paper.millions[i] > 0)
      expect_printed(static_cast<double>(ours.learnable) / 1e6, paper.millions[i], 2, what);
  }
}

TEST(Shapes, QeftTable2) {
  constexpr Figures kPaper[] = {
      {"full", 16, 0, {12.9, 24.8, 131.6}, {}},
      {"lora", 16, 0, {12.9, 24.8, 0}, {160, 250, 0}},
      {"platypus", 8, 0, {6.7, 12.7, 66.3}, {23, 36, 141}},
      {"qlora", 4, 0, {3.7, 6.9, 34.7}, {160, 250, 828}},
      {"qalora", 4, 0, {4.4, 8.2, 41.8}, {89, 140, 442}},
      {"owq", 4, 16, {3.6, 6.7, 33.9}, {22, 34, 107}},
      {"owq", 4, 128, {3.9, 7.2, 35.3}, {174, 273, 860}},
      {"qeft", 4, 16, {3.8, 7.1, 35.8}, {22, 34, 107}},
      {"qeft", 4, 128, {4.1, 7.6, 37.3}, {174, 273, 860}},
  };
  for (const Figures& paper : kPaper) expect_figures(paper, 0.1);
}

TEST(Shapes, QeftTable5) {
  constexpr Figures kPaper[] = {
      {"qalora", 3, 0, {3.59, 6.68, 33.64}, {89, 140, 442}},
      {"owq", 3, 128, {3.15, 5.69, 27.14}, {174, 273, 860}},
      {"qeft", 3, 128, {3.33, 6.05, 29.10}, {174, 273, 860}},
  };
  for (const Figures& paper : kPaper) expect_figures(paper, 0.01);
}

// Table 8 has whole "MB", so these decide what a group takes and where weak columns' codes are.
TEST(Shapes, QeftTable8) {
  constexpr Figures kPaper[] = {{"qeft", 4, 128, {4.107, 7.561, 37.260}, {}},
                                {"owq", 4, 128, {3.923, 7.200, 35.296}, {}}};
  for (const Figures& paper : kPaper)
    for (std::size_t i = 0; i < 3; ++i) {
      const ShapeReport ours = report(kSizes[i], with(paper.method, 4, 128));
      EXPECT_NEAR(qeft_gigabytes(ours.base_bytes) / paper.gigabytes[i], 1, 0.0011)
          << paper.method << " " << kSizes[i];
    }
}

// Table 10: a sequence of 512 tokens, gradient checkpointing, k = 16. LoRA and QLoRA come out to
// the printed digit, OWQ and QEFT within 2.6 %; docs/accounting.md says why QA-LoRA and Platypus
// do not, so those are not asked for.
TEST(Shapes, QeftTable10) {
  const auto total = [](const char* shape, const char* method) {
    return qeft_gigabytes(
        report(shape, with(method, 0, method[0] == 'o' || method[1] == 'e' ? 16 : 0))
            .states_16.total);
  };
  EXPECT_NEAR(total("llama2-7b", "lora"), 14.33, 0.006);
  EXPECT_NEAR(total("llama2-13b", "lora"), 27.08, 0.006);
  EXPECT_NEAR(total("llama2-7b", "qlora"), 5.16, 0.006);
  EXPECT_NEAR(total("llama2-13b", "qlora"), 9.12, 0.006);
  EXPECT_NEAR(total("llama2-70b", "qlora") / 41.46, 1, 0.01);
  constexpr double kOwq[] = {4.10, 7.41, 35.75}, kQeft[] = {4.24, 7.69, 37.25};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(total(kSizes[i], "owq") / kOwq[i], 1, 0.026);
    EXPECT_NEAR(total(kSizes[i], "qeft") / kQeft[i], 1, 0.014);
  }
}

// Each item by hand for one small case of every kind.
TEST(Shapes, ItemsOfTraining) {
  ShapeOptions options = with("qeft", 4, 16);
  options.max_seq_length = 100;
  options.batch_size = 3;
  const ShapeReport ours = report("llama2-70b", options);
  const std::int64_t tokens = 300, h = 8192, f = 28672, kv = 1024, n = ours.learnable;
  const auto bytes = [](const TrainingMemory& memory, std::string_view name) {
    for (const FitItem& item : memory.items)
      if (item.name == name) return static_cast<std::int64_t>(item.bytes);
    return std::int64_t{-1};
  };
  const std::int64_t kept = 4 * h + 2 * kv + 2 * f + 3 * 16;
  for (const std::int64_t width : {2, 4}) {
    const TrainingMemory& memory = width == 2 ? ours.states_16 : ours.states_32;
    EXPECT_EQ(bytes(memory, "weights"), ours.base_bytes);
    EXPECT_EQ(bytes(memory, "learned values"), width == 2 ? 0 : 4 * n);
    EXPECT_EQ(bytes(memory, "gradients"), width * n);
    EXPECT_EQ(bytes(memory, "moments"), 2 * width * n);
    EXPECT_EQ(bytes(memory, "layer inputs"), 80 * tokens * h * width);
    EXPECT_EQ(bytes(memory, "a layer's activations"), kept * tokens * width);
    EXPECT_EQ(bytes(memory, "logits"), tokens * 32000 * 4);
    std::int64_t total = 0;
    for (const FitItem& item : memory.items) total += static_cast<std::int64_t>(item.bytes);
    EXPECT_EQ(memory.total, total);
    EXPECT_EQ(memory.total_without_checkpoints,
              total - 80 * tokens * h * width + 79 * kept * tokens * width);
  }
  // Low rank on v and down only: their inputs whole, and r each.
  options = with("lora");
  options.lora_r = 5;
  options.target_modules = {"v_proj", "down_proj"};
  options.max_seq_length = 1;
  EXPECT_EQ(bytes(report("llama2-70b", options).states_16, "a layer's activations"),
            2 * (4 * h + 2 * kv + 2 * f + h + f + 2 * 5));
  // PEQA on q only; its scales are part of the weights.
  options = with("peqa", 3);
  options.group_size = 64;
  options.target_modules = {"q_proj"};
  const ShapeReport peqa = report("llama2-70b", options);
  EXPECT_EQ(peqa.learnable, 80 * h * 128);
  EXPECT_EQ(bytes(peqa.states_16, "learned values"), 0);
}

TEST(Shapes, ErrorsSayWhatThereIs) {
  const auto unknown = find_shape("llama-8b");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().message,
            "shape \"llama-8b\" is not known; there are llama-7b, llama-13b, llama-30b, llama-65b, "
            "llama2-7b, llama2-13b, llama2-70b");
  const auto expect = [](const ShapeOptions& options, std::string_view text) {
    const auto result = fit_shape(*find_shape("llama-7b"), options);
    ASSERT_FALSE(result) << text;
    EXPECT_NE(result.error().message.find(text), std::string::npos) << result.error().message;
  };
  expect(with("magic"), "there are full, lora, platypus, qlora, qalora, peqa, owq, qeft");
  expect(with("qeft", 4, 4096), "fewer than the 4096 columns of llama-7b's narrowest layer");
  expect(with("qeft", 5), "method qeft has no 5 bits; it has 4, 3, 8");
  expect(with("full", 4), "method full has no 4 bits; it has 16");
  expect(with("peqa", 4, 16), "has no weak columns; owq and qeft have");
  for (const int group_size : {-2, 1, 48}) {
    ShapeOptions options = with("qeft");
    options.group_size = group_size;
    expect(options, "give a multiple of 32");
  }
  ShapeOptions options = with("qeft", 4, 16);
  options.group_size = 4096;
  expect(options, "groups of 4096 columns do not fit the 4080 quantized columns of llama-7b");
  options.method = "qlora";
  expect(options, "method qlora with 4 bits takes no group size");
  options = with("peqa");
  options.lora_r = 4;
  expect(options, "no low-rank path");
  options = with("lora");
  options.lora_r = 4097;
  expect(options, "r = 4097: it must be from 1 to 4096");
  options = with("peqa");
  options.target_modules = {"w_proj"};
  expect(options, "\"w_proj\" matches nothing");
  options.target_modules = {"q_proj"};
  options.method = "full";
  expect(options, "takes no target modules");
  options = with("peqa");
  options.max_seq_length = options.batch_size = std::int64_t{1} << 20;
  expect(options, "2^30 tokens");
}

}  // namespace
}  // namespace trimpot
