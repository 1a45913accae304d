// Checkpoints: an interrupted run goes on to the same bits, and what does not belong to it is
// refused.
#include <gtest/gtest.h>

#include <filesystem>

#include "tune/training.h"

namespace trimpot {
namespace {

// Six steps at once against three, an interruption, and three more by other numbers of threads.
TEST_F(Training, ResumingIsExact) {
  const ExampleSet examples = chain_examples(60);
  const ScaleOptions scales{ScaleMethod::kBoth, ScaleGranularity::kGroup, {}};
  Run straight = start(examples, short_run(), scales, 2);
  RunFolder straight_folder = folder("straight");
  const auto whole = straight.trainer->run(straight_folder, {});
  ASSERT_TRUE(whole) << whole.error().message;
  EXPECT_TRUE(whole->finished);
  EXPECT_EQ(whole->steps, 6u);

  Run first = start(examples, short_run(), scales, 1);
  {
    RunFolder out = folder("stopped");
    int calls = 0;
    TrainerHooks hooks;
    hooks.stop = [&] { return ++calls > 3; };
    const auto stopped = first.trainer->run(out, hooks);
    ASSERT_TRUE(stopped) << stopped.error().message;
    EXPECT_FALSE(stopped->finished);
    EXPECT_EQ(stopped->steps, 3u);
    EXPECT_EQ(stopped->checkpoint, folder_.file("stopped/checkpoint-3.safetensors"));
    EXPECT_EQ(latest_checkpoint(folder_.file("stopped")), stopped->checkpoint);
  }
  for (const int threads : {1, 2, 3}) {
    Run second = start(examples, short_run(), scales, threads);
    const auto warning = second.trainer->resume(*latest_checkpoint(folder_.file("stopped")));
    ASSERT_TRUE(warning) << warning.error().message;
    EXPECT_EQ(*warning, "");
    EXPECT_EQ(second.trainer->step(), 3u);
    expect_equal(state_of(second), state_of(first));
    RunFolder out = folder("stopped", 3);
    const auto rest = second.trainer->run(out, {});
    ASSERT_TRUE(rest) << rest.error().message;
    EXPECT_TRUE(rest->finished);
    expect_equal(state_of(second), state_of(straight));
    EXPECT_EQ(rest->first_eval_loss, whole->first_eval_loss);
    EXPECT_EQ(rest->last_eval_loss, whole->last_eval_loss);
    ASSERT_EQ(out.metrics().steps.size(), 6u);
    for (std::size_t i = 0; i < 6; ++i) {
      const StepMetrics& a = out.metrics().steps[i];
      const StepMetrics& b = straight_folder.metrics().steps[i];
      EXPECT_EQ(a.step, i + 1);
      EXPECT_EQ(a.loss, b.loss);
      EXPECT_EQ(a.grad_norm, b.grad_norm);
      EXPECT_EQ(a.learning_rate, b.learning_rate);
      EXPECT_EQ(a.tokens, b.tokens);
    }
  }
}

TEST_F(Training, ResumingWithOtherKernelsWarns) {
  const auto kernels = usable_kernels();
  if (kernels.size() < 2) GTEST_SKIP() << "only one set of kernels";
  const ExampleSet examples = chain_examples(60);
  Run run = start(examples, short_run());
  RunFolder out = folder("run");
  TrainerHooks hooks;
  hooks.stop = [] { return true; };
  ASSERT_TRUE(run.trainer->run(out, hooks));
  Compute other(*kernels.back(), Precision::kDefault, 1);
  auto trainer =
      Trainer::create(other, *run.model, *run.method, examples, false, short_run(), "this run");
  ASSERT_TRUE(trainer);
  const auto warning = trainer->resume(*latest_checkpoint(out.path()));
  ASSERT_TRUE(warning) << warning.error().message;
  EXPECT_EQ(*warning, std::string("this run used the ") + kernels.front()->name +
                          " kernels and goes on with scalar: it will not be the same bit for bit "
                          "(TRIMPOT_ISA=" +
                          kernels.front()->name + " makes it so on a CPU that has them)");
}

TEST_F(Training, CheckpointsThatDoNotFitAreRefused) {
  const ExampleSet examples = chain_examples(60);
  Run run = start(examples, short_run());
  RunFolder out = folder("run");
  TrainerHooks hooks;
  int calls = 0;
  hooks.stop = [&] { return ++calls > 2; };
  ASSERT_TRUE(run.trainer->run(out, hooks));
  const std::string path = *latest_checkpoint(out.path());
  const auto error_of = [&](Run& other, const std::string& checkpoint) {
    const auto result = other.trainer->resume(checkpoint);
    EXPECT_FALSE(result);
    return result ? "" : result.error().message;
  };
  Run renamed = start(examples, short_run(), {}, 1, Precision::kDefault, "another run");
  EXPECT_EQ(error_of(renamed, path),
            path +
                ": this checkpoint belongs to another run (another identity); repeat the run's "
                "own options, or start anew without --resume");
  EXPECT_EQ(renamed.trainer->step(), 0u);
  // Another number of parameters under the same identity.
  Run both = start(examples, short_run(), {ScaleMethod::kBoth, {}, {}});
  EXPECT_EQ(error_of(both, path),
            path + ": tensor values is missing or has another size than this model's");
  TrainerOptions shorter = short_run();
  shorter.max_steps = 1;
  Run early = start(examples, shorter);
  EXPECT_EQ(error_of(early, path), path + ": it is at step 2, beyond this run's 1");
  // Other files, damaged ones, none.
  const std::string bytes = read_file(path);
  Run fresh = start(examples, short_run());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, bytes.size() / 2, bytes.size() - 1}) {
    write_file(folder_.file("cut"), bytes.substr(0, size));
    EXPECT_FALSE(error_of(fresh, folder_.file("cut")).empty());
  }
  EXPECT_FALSE(error_of(fresh, folder_.file("absent")).empty());
  EXPECT_FALSE(error_of(fresh, folder_.file("toy.gguf")).empty());
  std::string other = bytes;
  other.replace(other.find("tiles16"), 7, "tiles99");
  write_file(folder_.file("layout"), other);
  EXPECT_EQ(error_of(fresh, folder_.file("layout")),
            folder_.file("layout") + ": not a checkpoint of this version of trimpot");
}

TEST_F(Training, SavesNowAndThenAndKeepsTheLast) {
  const ExampleSet examples = chain_examples(60);
  TrainerOptions options = short_run();
  options.max_steps = 12;
  options.save_steps = 3;
  options.save_total_limit = 2;
  Run run = start(examples, options);
  RunFolder out = folder("run");
  ASSERT_TRUE(run.trainer->run(out, {}));
  // 3, 6 and 9 were saved, not the end; "9" is after "6".
  EXPECT_FALSE(std::filesystem::exists(out.file("checkpoint-3.safetensors")));
  EXPECT_TRUE(std::filesystem::exists(out.file("checkpoint-6.safetensors")));
  EXPECT_EQ(latest_checkpoint(out.path()), out.file("checkpoint-9.safetensors"));
  std::filesystem::copy_file(out.file("checkpoint-9.safetensors"),
                             out.file("checkpoint-10.safetensors"));
  write_file(out.file("checkpoint-x.safetensors"), "");
  write_file(out.file("checkpoint-99.safetensors.tmp"), "");
  EXPECT_EQ(latest_checkpoint(out.path()), out.file("checkpoint-10.safetensors"));
  EXPECT_EQ(latest_checkpoint(folder_.file("nowhere")), std::nullopt);
  // A new run in the folder of an older one: its checkpoints are the last, whatever their steps.
  options.max_steps = 4;
  options.save_steps = 1;
  Run anew = start(examples, options);
  RunFolder again = folder("run");
  ASSERT_TRUE(anew.trainer->run(again, {}));
  EXPECT_EQ(latest_checkpoint(again.path()), again.file("checkpoint-3.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(again.file("checkpoint-9.safetensors")));
}

}  // namespace
}  // namespace trimpot
