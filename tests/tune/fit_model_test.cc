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

TEST(FitModel, AgreesWithTheMeasuredPeak) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers take memory of their own";
#endif
  const char* path = std::getenv("TRIMPOT_MODEL");
  if (path == nullptr) GTEST_SKIP() << "TRIMPOT_MODEL is not set";
  const auto file = gguf::File::open(path);
  ASSERT_TRUE(file) << file.error().message;
  FitOptions options;
  options.threads = 2;
  const auto report = estimate_fit(*file, options);
  ASSERT_TRUE(report) << report.error().message;

  const auto kernels = select_kernels();
  ASSERT_TRUE(kernels);
  Compute compute(**kernels, Precision::kDefault, options.threads);
  const auto model = load_model(*file, compute.team);
  ASSERT_TRUE(model) << model.error().message;
  const auto tokenizer = Tokenizer::from_gguf(*file);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto method = make_scale_method(**model, {});
  ASSERT_TRUE(method) << method.error().message;
  TrainingPass pass(compute, **model);
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
  EXPECT_NEAR(static_cast<double>(report->total), peak, 0.15 * peak);
}

}  // namespace
}  // namespace trimpot
