// The default model, SmolLM2-135M-Instruct (set TRIMPOT_MODEL to its GGUF file): the estimate
// against the peak memory of a real step. Alone in its program: earlier peaks would count.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>

#include "base/rng.h"
#include "model/training_pass.h"
#include "text/tokenizer.h"
#include "tune/fit.h"

namespace trimpot {
namespace {

// One pass of 512 tokens with what the method makes of the model. The estimate is never below what
// was measured, and by 10 % above it at most. Methods must come in the order of their peaks.
void expect_peak(const std::string& name) {
  const char* path = std::getenv("TRIMPOT_MODEL");
  const auto file = gguf::File::open(path);
  ASSERT_TRUE(file) << file.error().message;
  FitOptions options;
  options.threads = 2;
  options.tuning.method = name;
  const auto report = estimate_fit(*file, options);
  ASSERT_TRUE(report) << report.error().message;

  const auto kernels = select_kernels();
  ASSERT_TRUE(kernels);
  Compute compute(**kernels, Precision::kDefault, options.threads);
  const auto model = load_model(*file, compute.team);
  ASSERT_TRUE(model) << model.error().message;
  const auto tokenizer = Tokenizer::from_gguf(*file);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  MethodOptions how;
  how.method = name;
  const auto method = make_method(compute, **model, how);
  ASSERT_TRUE(method) << method.error().message;
  TrainingPass pass(compute, **model, {}, (*method)->parameters().size());
  TrainingBatch batch;
  const CounterRng random(1, 0);
  for (std::uint64_t i = 0; i < 512; ++i)
    batch.tokens.push_back(static_cast<TokenId>(
        random.below(i, static_cast<std::uint64_t>((*model)->config.vocabulary))));
  batch.learned.assign(512, 1);
  batch.lengths = {512};
  ASSERT_TRUE(pass.run(batch, 1.0f / 511, &(*method)->sink()));
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  const double peak = static_cast<double>(usage.ru_maxrss) * 1024;
  EXPECT_GE(static_cast<double>(report->total), peak) << name;
  EXPECT_LE(static_cast<double>(report->total), 1.1 * peak) << name;
}

TEST(FitModel, AgreesWithTheMeasuredPeak) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take memory of their own";
#endif
  if (std::getenv("TRIMPOT_MODEL") == nullptr) GTEST_SKIP() << "TRIMPOT_MODEL is not set";
  expect_peak("peqa");
  expect_peak("lora");
}

}  // namespace
}  // namespace trimpot
