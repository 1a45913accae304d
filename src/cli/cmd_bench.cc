#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/rng.h"
#include "cli/bench/roof.h"
#include "cli/command.h"
#include "cli/engine.h"
#include "kernels/kernels.h"
#include "model/session.h"
#include "model/training_pass.h"
#include "model/work.h"
#include "optim/adamw.h"
#include "tune/adapter.h"
#include "tune/methods.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kRounds = 5;

struct BenchOptions {
  ModelOptions model;
  std::string method = "peqa";
  std::int64_t rank = 0, weak_columns = 0;  // 0: as the method and the file have it
  std::vector<std::string> target_modules;
  int decode_tokens = 128;
  int depth = 0;
  int sequences = 8;
  int prompt_tokens = 512;
  int max_seq_length = 512;
  std::string cache = "f16";
  bool own_adapters = false;
  bool json = false;
};

// Median, least and most seconds of a few rounds. The first, unmeasured call warms up.
struct Timing {
  double median = 0, least = 0, most = 0;
};

template <typename Body>
Result<double> seconds_of(Body&& body) {
  const auto start = std::chrono::steady_clock::now();
  TRIMPOT_TRY_VOID(body());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Timing summary(std::array<double, kRounds> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[kRounds / 2], seconds.front(), seconds.back()};
}

template <typename Body>
Result<Timing> measure(Body&& body) {
  std::array<double, kRounds> rounds;
  TRIMPOT_TRY_VOID(body());
  for (double& round : rounds) {
    TRIMPOT_TRY(round, seconds_of(body));
  }
  return summary(rounds);
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

const char* rounded_name(const Kernels& kernels) {
  return kernels.rounded != nullptr ? kernels.rounded : "16 bits";
}

// With a long context's keys and values a step's bytes may no longer fit the last cache, and then
// all of them come at memory's rate, the weights too: the roof is that of reading as many.
std::size_t bytes_of_step(const Work& work, std::int64_t steps) {
  return static_cast<std::size_t>(work.bytes / static_cast<double>(steps));
}

// `work` is that of all `tokens`. The roof is measured here, after the memory was, by reading
// `bytes` again and again.
Status report(const BenchOptions& options, Engine& engine, const char* what, std::int64_t tokens,
              std::size_t bytes, const Work& work, const Timing& timing,
              const Timing* forward = nullptr) {
  const double count = static_cast<double>(tokens);
  const double peak = static_cast<double>(peak_memory());
  const Roof roof = measure_roof(engine.compute, bytes);
  const double fraction = roof.seconds(work) / timing.median;
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
              {"tokens_per_second_worst", count / timing.most},
              {"roof_fraction", fraction},
              {"work",
               {{"bytes", work.bytes},
                {"int8_macs", work.int8_macs},
                {"rounded_macs", work.rounded_macs},
                {"f32_macs", work.f32_macs}}},
              {"roof",
               {{"read_bytes_per_second", roof.read_bytes},
                {"int8_macs_per_second", roof.int8},
                {"rounded_macs_per_second", roof.rounded},
                {"f32_macs_per_second", roof.f32}}}};
    if (forward != nullptr) {
      json["method"] = options.method;
      json["step_ms"] = timing.median * 1e3;
      json["forward_ms"] = forward->median * 1e3;
      json["backward_ms"] = (timing.median - forward->median) * 1e3;
    }
    json["peak_rss_mb"] = peak / 1e6;
    return print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  return print(fmt::format(
      "{}: {:.1f} tokens/s (from {:.1f} to {:.1f}){}\n"
      "{:.0f} % of this machine's limit ({})\n"
      "{} tokens, median of {} rounds, {} kernels, {} thread{}, {} peak memory\n",
      what, count / timing.median, count / timing.most, count / timing.least,
      forward != nullptr ? fmt::format(", {:.0f} ms a step of {}, {:.0f} ms the loss alone",
                                       timing.median * 1e3, options.method, forward->median * 1e3)
                         : "",
      fraction * 100,
      work.bytes / roof.read_bytes >= roof.seconds(work)
          ? fmt::format("reading {} at {:.1f} GB/s", format_bytes(work.bytes),
                        roof.read_bytes / 1e9)
          : fmt::format("{:.1f} G multiply-adds in int8, {:.1f} in {}, {:.1f} in f32",
                        work.int8_macs / 1e9, work.rounded_macs / 1e9,
                        rounded_name(engine.compute.kernels), work.f32_macs / 1e9),
      tokens, kRounds, engine.compute.kernels.name, engine.compute.team.size(),
      engine.compute.team.size() == 1 ? "" : "s", format_bytes(peak)));
}

Status bench_decode(const BenchOptions& options) {
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  const int context = options.depth + options.decode_tokens;
  TRIMPOT_TRY_VOID(check_length(*engine->model, context));
  const auto tokens = random_tokens(*engine->model, context);
  std::vector<float> logits(static_cast<std::size_t>(engine->model->config.vocabulary));
  const CacheType cache = cache_type(options.cache);
  Session session(engine->compute, *engine->model, context, cache);
  const std::span<const TokenId> all = tokens;
  const auto depth = static_cast<std::size_t>(options.depth);
  TRIMPOT_TRY_VOID(session.append(all.first(depth), nullptr));
  TRIMPOT_TRY(const Timing timing, measure([&]() -> Status {
                session.truncate(options.depth);
                for (const TokenId& token : all.subspan(depth))
                  TRIMPOT_TRY_VOID(session.append({&token, 1}, logits.data()));
                return {};
              }));
  Work work;
  for (std::int64_t position = options.depth; position < context; ++position)
    work += decode_work(engine->compute, *engine->model, position, 1, cache);
  return report(options, *engine, "decode", options.decode_tokens,
                bytes_of_step(work, options.decode_tokens), work, timing);
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
  return report(options, *engine, "prefill", options.prompt_tokens, engine->model->weight_bytes(),
                prefill_work(engine->compute, *engine->model, options.prompt_tokens), timing);
}

// An overlay for each sequence: copies of one adapter, each in memory of its own.
Result<std::vector<Overlay>> make_overlays(const BenchOptions& options, Engine& engine) {
  std::vector<Overlay> overlays;
  if (!options.own_adapters) return overlays;
  if (options.model.adapter.empty()) return fail("--own-adapters needs one with --adapter");
  const AdapterBase base{options.model.model, fingerprint(engine.file)};
  for (int i = 0; i < options.sequences; ++i) {
    TRIMPOT_TRY(Overlay overlay,
                load_overlay(options.model.adapter, base, *engine.model, &engine.compute.team));
    overlays.push_back(std::move(overlay));
  }
  return overlays;
}

// Several sequences that are continued together, token by token.
Status bench_batch(const BenchOptions& options) {
  ModelOptions base = options.model;
  if (options.own_adapters) base.adapter.clear();
  TRIMPOT_TRY(const auto engine, load_engine(base));
  TRIMPOT_TRY_VOID(check_length(*engine->model, options.decode_tokens));
  TRIMPOT_TRY(const std::vector<Overlay> overlays, make_overlays(options, *engine));
  const CacheType cache = cache_type(options.cache);
  const auto tokens = random_tokens(*engine->model, options.decode_tokens * options.sequences);
  Decoder decoder(engine->compute, *engine->model);
  std::vector<Sequence> sequences;
  for (int i = 0; i < options.sequences; ++i)
    sequences.emplace_back(engine->compute, *engine->model, options.decode_tokens, cache);
  AlignedBuffer<float> logits(
      static_cast<std::size_t>(engine->model->config.vocabulary * options.sequences));
  std::vector<Turn> turns(sequences.size());
  TRIMPOT_TRY(const Timing timing, measure([&]() -> Status {
                for (Sequence& sequence : sequences) sequence.truncate(0);
                for (std::size_t at = 0; at < tokens.size(); at += turns.size()) {
                  for (std::size_t i = 0; i < turns.size(); ++i)
                    turns[i] = {&sequences[i],
                                {&tokens[at + i], 1},
                                true,
                                overlays.empty() ? nullptr : &overlays[i]};
                  TRIMPOT_TRY_VOID(decoder.step(turns, logits.data()));
                }
                return {};
              }));
  Work work;
  for (std::int64_t position = 0; position < options.decode_tokens; ++position)
    work += decode_work(engine->compute, *engine->model, position, options.sequences, cache);
  if (!overlays.empty())  // each token reads its own numbers besides the base's codes
    for (const Overlay& overlay : overlays)
      work.bytes += static_cast<double>(overlay.bytes()) * options.decode_tokens;
  return report(options, *engine, "batch", static_cast<std::int64_t>(tokens.size()),
                bytes_of_step(work, options.decode_tokens), work, timing);
}

Result<std::unique_ptr<TuningMethod>> make_bench_method(const BenchOptions& options,
                                                        Engine& engine) {
  Model& model = *engine.model;
  std::size_t parameters = 0;
  for (std::size_t index = 0; index < model.linear_count(); ++index)
    parameters +=
        static_cast<std::size_t>(model.linear(index).rows() * model.linear(index).columns);
  TRIMPOT_TRY(
      const TuningPreset preset,
      preset_of(options.method, parameters, std::max<std::int64_t>(1, options.weak_columns)));
  MethodOptions how;
  how.method = options.method;
  how.low_rank.rank = options.rank > 0 ? options.rank : preset.rank;
  how.low_rank.alpha = preset.alpha;
  how.low_rank.dropout = preset.dropout;
  how.target_modules =
      options.target_modules.empty() ? preset.target_modules : options.target_modules;
  if (options.weak_columns > 0) {
    // Which ones makes no difference to the time.
    std::vector<std::int32_t> first(static_cast<std::size_t>(options.weak_columns));
    std::iota(first.begin(), first.end(), 0);
    how.new_columns.assign(model.linear_count(), first);
  }
  return make_method(engine.compute, model, how);
}

// A step as `tune` does it: forward, backward, AdamW, values rounded into the weights; and the
// forward pass with the loss alone. The backward is the difference; it computes a part of each
// layer's forward again (model/training_pass.h).
Status bench_tune(const BenchOptions& options) {
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  TRIMPOT_TRY_VOID(check_length(*engine->model, options.max_seq_length));
  TRIMPOT_TRY(const auto method, make_bench_method(options, *engine));
  Parameters& parameters = method->parameters();
  TrainingPass pass(engine->compute, *engine->model, {}, parameters.size());
  TrainingBatch batch;
  batch.tokens = random_tokens(*engine->model, options.max_seq_length);
  batch.learned.assign(batch.tokens.size(), 1);
  batch.lengths = {options.max_seq_length};
  const float weight = 1.0f / static_cast<float>(options.max_seq_length - 1);
  std::uint64_t step = 0;
  const auto forward = [&]() -> Status {
    method->begin_pass(++step);
    TRIMPOT_TRY_VOID(pass.run(batch, 0.0f, nullptr));
    return {};
  };
  const auto whole_step = [&]() -> Status {
    clear(engine->compute, parameters.gradient.data(), parameters.size());
    method->begin_pass(++step);
    TRIMPOT_TRY_VOID(pass.run(batch, weight, &method->sink()));
    constexpr std::int64_t kSlice = 16384;
    engine->compute.team.for_each(
        static_cast<std::int64_t>(parameters.size()), kSlice,
        [&](std::int64_t begin, std::int64_t end, int) {
          const auto part = [&](AlignedBuffer<float>& values) {
            return values.span().subspan(static_cast<std::size_t>(begin),
                                         static_cast<std::size_t>(end - begin));
          };
          // A tiny rate: random tokens shall not drive the values anywhere.
          adamw_step({}, step, 1e-6, 1.0f,
                     {part(parameters.values), part(parameters.gradient),
                      part(parameters.first_moment), part(parameters.second_moment)});
        });
    return method->commit(engine->compute.team);
  };
  // Steps follow steps, as in tuning: what the loss alone leaves in the caches is none of theirs.
  TRIMPOT_TRY(const Timing steps, measure(whole_step));
  TRIMPOT_TRY(const Timing losses, measure(forward));
  const Work work =
      tuning_work(engine->compute, *engine->model, options.max_seq_length, &method->sink());
  return report(options, *engine, "tune", options.max_seq_length, engine->model->weight_bytes(),
                work, steps, &losses);
}

// What it takes to serve another task: an adapter read, checked and made ready beside a model in
// memory; or, without one, another model file read and packed (from the system's cache).
Status bench_switch(const BenchOptions& options) {
  ModelOptions base = options.model;
  base.adapter.clear();
  TRIMPOT_TRY(const auto engine, load_engine(base));
  const bool with_adapter = !options.model.adapter.empty();
  // A server has the fingerprint of the base that it has loaded.
  AdapterBase of{base.model, {}};
  if (with_adapter) of.fingerprint = fingerprint(engine->file);
  const auto load = [&]() -> Status {
    engine->model.reset();
    TRIMPOT_TRY(engine->model, load_model(engine->file, engine->compute.team));
    return {};
  };
  const auto put_beside = [&]() -> Status {
    TRIMPOT_TRY(const Overlay overlay,
                load_overlay(options.model.adapter, of, *engine->model, &engine->compute.team));
    return {};
  };
  TRIMPOT_TRY(const Timing timing, with_adapter ? measure(put_beside) : measure(load));
  if (options.json) {
    const Json json{{"bench", "switch"},
                    {"model", base.model},
                    {"adapter", options.model.adapter},
                    {"rounds", kRounds},
                    {"milliseconds", timing.median * 1e3},
                    {"milliseconds_best", timing.least * 1e3},
                    {"milliseconds_worst", timing.most * 1e3}};
    return print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  return print(
      fmt::format("switch: {:.1f} ms (from {:.1f} to {:.1f}) to {}\n", timing.median * 1e3,
                  timing.least * 1e3, timing.most * 1e3,
                  with_adapter ? "make an adapter ready beside the model" : "load another model"));
}

// Of a model's size, if one is given.
Status bench_roof(const BenchOptions& options) {
  TRIMPOT_TRY(const Kernels* kernels, select_kernels());
  const int most = options.model.threads > 0 ? options.model.threads : default_thread_count();
  std::vector<std::size_t> sizes{std::size_t{16} << 20, std::size_t{96} << 20,
                                 std::size_t{512} << 20};
  if (!options.model.model.empty()) {
    TRIMPOT_TRY(const auto file, gguf::File::open(options.model.model));
    sizes.push_back(static_cast<std::size_t>(file.file_bytes()));
  }
  Json json{
      {"isa", kernels->name}, {"rounded", rounded_name(*kernels)}, {"threads", Json::array()}};
  std::vector<std::vector<std::string>> columns;
  for (int threads = 1; threads <= most;
       threads = threads * 2 > most && threads < most ? most : threads * 2) {
    Compute compute(*kernels, Precision::kDefault, threads);
    const Peaks peaks = peak_rates(compute);
    const double join = join_seconds(compute);
    Json row{{"threads", threads},
             {"int8_macs_per_second", peaks.int8},
             {"rounded_macs_per_second", peaks.rounded},
             {"f32_macs_per_second", peaks.f32},
             {"join_microseconds", join * 1e6},
             {"read", Json::array()}};
    std::vector<std::string> column{fmt::format("{}", threads)};
    for (const std::size_t bytes : sizes) {
      const double rate = read_rate(compute, bytes);
      row["read"].push_back({{"bytes", bytes}, {"bytes_per_second", rate}});
      column.push_back(fmt::format("{:.1f}", rate / 1e9));
    }
    for (const double rate : {peaks.int8, peaks.rounded, peaks.f32})
      column.push_back(rate > 0 ? fmt::format("{:.0f}", rate / 1e9) : "-");
    column.push_back(fmt::format("{:.2f}", join * 1e6));
    columns.push_back(std::move(column));
    json["threads"].push_back(std::move(row));
  }
  if (options.json) return print(json.dump(2) + "\n");
  std::vector<std::string> names{"threads"};
  for (const std::size_t bytes : sizes)
    names.push_back(fmt::format("reading {}, GB/s", format_bytes(static_cast<double>(bytes))));
  names.push_back("int8, G multiply-adds/s");
  names.push_back(fmt::format("{}, G multiply-adds/s", rounded_name(*kernels)));
  names.push_back("f32, G multiply-adds/s");
  names.push_back("joining the threads, us");
  std::string text = fmt::format("{} kernels\n", kernels->name);
  for (std::size_t row = 0; row < names.size(); ++row) {
    text += fmt::format("{:<28}", names[row]);
    for (const auto& column : columns) text += fmt::format("{:>10}", column[row]);
    text += "\n";
  }
  return print(text);
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
    add_model_options(
        *bench, options->model,
        {.adapter = std::string_view(name) != "tune", .bf16 = std::string_view(name) == "prefill"});
    bench->add_flag("--json", options->json, "one JSON object instead of text");
    bench->footer(fmt::format("Example:\n  trimpot bench {} -m model.gguf", name));
    bench->callback([options, &action, run] { action = [options, run] { return run(*options); }; });
    return bench;
  };
  CLI::App* isa = command->add_subcommand("isa", "List the instruction sets of the kernels");
  isa->add_flag("--json", options->json, "one JSON object instead of text");
  isa->footer("Examples:\n  trimpot bench isa\n  TRIMPOT_ISA=avx2 trimpot bench isa");
  isa->callback([options, &action] { action = [options] { return bench_isa(options->json); }; });
  CLI::App* roof =
      command->add_subcommand("roof", "What this machine can do at most: memory and arithmetic");
  roof->add_option("-m,--model", options->model.model,
                   "also read memory of this file's size (GGUF)");
  roof->add_option("-t,--threads", options->model.threads, "most threads (default: all cores)")
      ->check(CLI::Range(0, 1024));
  roof->add_flag("--json", options->json, "one JSON object instead of text");
  roof->footer("Examples:\n  trimpot bench roof\n  trimpot bench roof -m model.gguf --json");
  roof->callback([options, &action] { action = [options] { return bench_roof(*options); }; });
  CLI::App* decode = add("decode", "Generation, token by token", bench_decode);
  decode->add_option("-n,--n-predict", options->decode_tokens, "tokens of a round")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  decode->add_option("-d,--n-depth", options->depth, "tokens that are there already")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  add_cache_option(*decode, options->cache);
  CLI::App* batch = add("batch", "Generation of several sequences together", bench_batch);
  batch->add_option("-n,--n-predict", options->decode_tokens, "tokens of each sequence in a round")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  batch->add_option("--np,--n-parallel", options->sequences, "sequences")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  batch->add_flag("--own-adapters", options->own_adapters,
                  "each sequence through an adapter of its own: copies of --adapter");
  add_cache_option(*batch, options->cache);
  add("prefill", "Reading a prompt", bench_prefill)
      ->add_option("-p,--n-prompt", options->prompt_tokens, "tokens of a round")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  CLI::App* tune = add("tune", "A training step: forward, backward, update", bench_tune);
  tune->add_option("--max-seq-length", options->max_seq_length, "tokens of a step")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  tune->add_option("--method", options->method, "what learns, as for trimpot tune")
      ->check(CLI::IsMember(method_names()))
      ->capture_default_str();
  tune->add_option("--lora-r", options->rank, "rank of low-rank methods (default: the preset's)")
      ->check(whole_number(1));
  tune->add_option("--weak-columns", options->weak_columns,
                   "qeft, for a file without weak columns: so many in every layer")
      ->check(whole_number(1));
  tune->add_option("--target-modules", options->target_modules,
                   "linear layers to tune (default: the method's)")
      ->delimiter(',');
  add("switch", "Making another task's adapter ready beside a loaded model", bench_switch);
  command->footer(
      "Examples:\n"
      "  trimpot bench isa\n"
      "  trimpot bench decode -m model.gguf -n 128 -t 2\n"
      "  trimpot bench tune -m model.gguf --json");
}

}  // namespace trimpot::cli
