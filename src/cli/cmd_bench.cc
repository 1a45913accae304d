#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "cli/command.h"
#include "cli/engine.h"
#include "kernels/kernels.h"
#include "model/session.h"
#include "model/training_pass.h"
#include "optim/adamw.h"
#include "tune/scales.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kRounds = 5;

struct BenchOptions {
  ModelOptions model;
  std::string method = "peqa";
  int decode_tokens = 128;
  int prompt_tokens = 512;
  int max_seq_length = 512;
  bool json = false;
};

// Median, least and most seconds of a few rounds. The first, unmeasured call warms up.
struct Timing {
  double median = 0, least = 0, most = 0;
};

template <typename Body>
Result<Timing> measure(Body&& body) {
  TRIMPOT_TRY_VOID(body());
  std::array<double, kRounds> seconds;
  for (double& round : seconds) {
    const auto start = std::chrono::steady_clock::now();
    TRIMPOT_TRY_VOID(body());
    round = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::sort(seconds.begin(), seconds.end());
  return Timing{seconds[kRounds / 2], seconds.front(), seconds.back()};
}

std::vector<TokenId> random_tokens(const Model& model, int count) {
  const CounterRng random(1, 0);
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] =
        static_cast<TokenId>(random.below(i, static_cast<std::uint64_t>(model.config.vocabulary)));
  return tokens;
}

Status check_length(const Model& model, std::int64_t tokens) {
  if (tokens <= model.config.context_length) return {};
  return fail("{} tokens exceed the model's context of {}", tokens, model.config.context_length);
}

Status report(const BenchOptions& options, const Engine& engine, const char* what,
              std::int64_t tokens, const Timing& timing, bool steps) {
  const double count = static_cast<double>(tokens);
  const double peak = static_cast<double>(peak_memory());
  if (options.json) {
    Json json{{"bench", what},
              {"model", options.model.model},
              {"isa", engine.compute.kernels.name},
              {"threads", engine.compute.team.size()},
              {"precision", options.model.precision},
              {"tokens", tokens},
              {"rounds", kRounds},
              {"tokens_per_second", count / timing.median},
              {"tokens_per_second_best", count / timing.least},
              {"tokens_per_second_worst", count / timing.most}};
    if (steps) json["method"] = options.method;
    if (steps) json["step_ms"] = timing.median * 1e3;
    json["peak_rss_mb"] = peak / 1e6;
    return print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  return print(fmt::format(
      "{}: {:.1f} tokens/s (from {:.1f} to {:.1f}){}\n"
      "{} tokens, median of {} rounds, {} kernels, {} thread{}, {} peak memory\n",
      what, count / timing.median, count / timing.most, count / timing.least,
      steps ? fmt::format(", {:.0f} ms a step of {}", timing.median * 1e3, options.method) : "",
      tokens, kRounds, engine.compute.kernels.name, engine.compute.team.size(),
      engine.compute.team.size() == 1 ? "" : "s", format_bytes(peak)));
}

Status bench_decode(const BenchOptions& options) {
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  TRIMPOT_TRY_VOID(check_length(*engine->model, options.decode_tokens));
  const auto tokens = random_tokens(*engine->model, options.decode_tokens);
  std::vector<float> logits(static_cast<std::size_t>(engine->model->config.vocabulary));
  Session session(engine->compute, *engine->model, options.decode_tokens);
  TRIMPOT_TRY(const Timing timing, measure([&]() -> Status {
                session.truncate(0);
                for (const TokenId& token : tokens)
                  TRIMPOT_TRY_VOID(session.append({&token, 1}, logits.data()));
                return {};
              }));
  return report(options, *engine, "decode", options.decode_tokens, timing, false);
}

Status bench_prefill(const BenchOptions& options) {
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  TRIMPOT_TRY_VOID(check_length(*engine->model, options.prompt_tokens));
  const auto tokens = random_tokens(*engine->model, options.prompt_tokens);
  std::vector<float> logits(static_cast<std::size_t>(engine->model->config.vocabulary));
  Session session(engine->compute, *engine->model, options.prompt_tokens);
  TRIMPOT_TRY(const Timing timing, measure([&] {
                session.truncate(0);
                return session.append(tokens, logits.data());
              }));
  return report(options, *engine, "prefill", options.prompt_tokens, timing, false);
}

// A step as `tune` does it: forward, backward, AdamW, scales rounded into the weights.
Status bench_tune(const BenchOptions& options) {
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  TRIMPOT_TRY_VOID(check_length(*engine->model, options.max_seq_length));
  ScaleOptions scales;
  scales.method = options.method == "peqa-zero"   ? ScaleMethod::kZeros
                  : options.method == "peqa-both" ? ScaleMethod::kBoth
                                                  : ScaleMethod::kScales;
  TRIMPOT_TRY(const auto method, make_scale_method(*engine->model, scales));
  Parameters& parameters = method->parameters();
  TrainingPass pass(engine->compute, *engine->model);
  TrainingBatch batch;
  batch.tokens = random_tokens(*engine->model, options.max_seq_length);
  batch.learned.assign(batch.tokens.size(), 1);
  batch.lengths = {options.max_seq_length};
  const float weight = 1.0f / static_cast<float>(options.max_seq_length - 1);
  std::uint64_t step = 0;
  TRIMPOT_TRY(const Timing timing, measure([&]() -> Status {
                std::fill_n(parameters.gradient.data(), parameters.size(), 0.0f);
                TRIMPOT_TRY_VOID(pass.run(batch, weight, &method->sink()));
                ++step;
                constexpr std::int64_t kSlice = 16384;
                engine->compute.team.for_each(
                    static_cast<std::int64_t>(parameters.size()), kSlice,
                    [&](std::int64_t begin, std::int64_t end, int) {
                      const auto part = [&](AlignedBuffer<float>& values) {
                        return values.span().subspan(static_cast<std::size_t>(begin),
                                                     static_cast<std::size_t>(end - begin));
                      };
                      // A tiny rate: random tokens shall not drive the scales anywhere.
                      adamw_step({}, step, 1e-6, 1.0f,
                                 {part(parameters.values), part(parameters.gradient),
                                  part(parameters.first_moment), part(parameters.second_moment)});
                    });
                return method->commit(engine->compute.team);
              }));
  return report(options, *engine, "tune", options.max_seq_length, timing, true);
}

Status bench_isa(bool as_json) {
  TRIMPOT_TRY(const Kernels* chosen, select_kernels());
  const char* variable = std::getenv("TRIMPOT_ISA");
  const bool forced = variable != nullptr && *variable != '\0';
  Json json{{"chosen", chosen->name}, {"forced", forced}, {"isas", Json::array()}};
  std::string text = fmt::format("{:<16}{:<9}{:<9}{}\n", "ISA", "usable", "chosen", "needs");
  for (const IsaInfo& isa : list_isas()) {
    const bool is_chosen = isa.kernels == chosen;
    json["isas"].push_back(
        {{"name", isa.name}, {"usable", isa.usable}, {"chosen", is_chosen}, {"needs", isa.needs}});
    text += fmt::format("{:<16}{:<9}{:<9}{}\n", isa.name, isa.usable ? "yes" : "no",
                        is_chosen ? "yes" : "", isa.needs);
  }
  text += forced ? "Chosen by TRIMPOT_ISA.\n"
                 : "The best usable one is chosen; TRIMPOT_ISA=NAME forces another.\n";
  return print(as_json ? json.dump(2) + "\n" : text);
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("bench", "Measure speed on this machine");
  command->require_subcommand(1);
  auto options = std::make_shared<BenchOptions>();
  const auto add = [&](const char* name, const char* what, Status (*run)(const BenchOptions&)) {
    CLI::App* bench = command->add_subcommand(name, what);
    add_model_options(*bench, options->model, false);
    bench->add_flag("--json", options->json, "one JSON object instead of text");
    bench->footer(fmt::format("Example:\n  trimpot bench {} -m model.gguf", name));
    bench->callback([options, &action, run] { action = [options, run] { return run(*options); }; });
    return bench;
  };
  CLI::App* isa = command->add_subcommand("isa", "List the instruction sets of the kernels");
  isa->add_flag("--json", options->json, "one JSON object instead of text");
  isa->footer("Examples:\n  trimpot bench isa\n  TRIMPOT_ISA=avx2 trimpot bench isa");
  isa->callback([options, &action] { action = [options] { return bench_isa(options->json); }; });
  add("decode", "Generation, token by token", bench_decode)
      ->add_option("-n,--n-predict", options->decode_tokens, "tokens of a round")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add("prefill", "Reading a prompt", bench_prefill)
      ->add_option("-p,--n-prompt", options->prompt_tokens, "tokens of a round")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  CLI::App* tune = add("tune", "A training step: forward, backward, update", bench_tune);
  tune->add_option("--max-seq-length", options->max_seq_length, "tokens of a step")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  tune->add_option("--method", options->method, "what learns: peqa, peqa-zero or peqa-both")
      ->check(CLI::IsMember({"peqa", "peqa-zero", "peqa-both"}))
      ->capture_default_str();
  command->footer(
      "Examples:\n"
      "  trimpot bench isa\n"
      "  trimpot bench decode -m model.gguf -n 128 -t 2\n"
      "  trimpot bench tune -m model.gguf --json");
}

}  // namespace trimpot::cli
