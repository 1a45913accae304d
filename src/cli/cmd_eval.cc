#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cli/command.h"
#include "cli/engine.h"
#include "data/records.h"
#include "eval/columns.h"
#include "eval/match.h"
#include "eval/perplexity.h"
#include "text/chat_template.h"
#include "tune/progress.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

// A line on stderr that is redrawn on a terminal and left out elsewhere.
void live(const std::string& line) {
  if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\033[K%s", line.c_str());
}

class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  std::string eta(std::int64_t done, std::int64_t total) const {
    return format_duration(seconds() / static_cast<double>(done) *
                           static_cast<double>(total - done));
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

struct PplOptions {
  ModelOptions model;
  std::string text;
  std::int64_t context = 0;
  std::int64_t chunks = 0;
  std::string stride = "llama";
  std::string cache = "f16";
  bool json = false;
};

Status eval_ppl(const PplOptions& options) {
  TRIMPOT_TRY(const std::string text, read_text_file(options.text));
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  const bool paper = options.stride == "paper";
  const std::vector<TokenId> tokens = engine->tokenizer->encode(text);
  PerplexityOptions protocol;
  protocol.score_all = paper;
  protocol.context = options.context > 0 ? options.context : paper ? 2048 : 512;
  protocol.chunks = options.chunks;
  protocol.cache = cache_type(options.cache);
  if (!paper && engine->tokenizer->adds_bos() && engine->tokenizer->bos())
    protocol.bos = *engine->tokenizer->bos();
  const Clock clock;
  const auto progress = [&](const PerplexityResult& result, std::int64_t total) {
    live(fmt::format("window {}/{}  perplexity {:.4f}  ETA {}", result.chunks, total,
                     result.perplexity, clock.eta(result.chunks, total)));
  };
  auto result = perplexity(engine->compute, *engine->model, tokens, protocol, progress);
  live("");
  if (!result) return fail("{}: {}", options.text, result.error().message);
  if (options.json)
    return print(Json{{"perplexity", result->perplexity},
                      {"error", result->error},
                      {"tokens", result->tokens},
                      {"chunks", result->chunks},
                      {"context", protocol.context},
                      {"protocol", paper ? "paper" : "llama.cpp"},
                      {"precision", options.model.precision},
                      {"seconds", clock.seconds()}}
                     .dump() +
                 "\n");
  return print(
      fmt::format("Final estimate: PPL = {:.4f} +/- {:.5f}   ({} predictions in {} windows "
                  "of {} tokens, {})\n",
                  result->perplexity, result->error, result->tokens, result->chunks,
                  protocol.context, paper ? "all of each window" : "second half of each window"));
}

struct MatchCommand {
  ModelOptions model;
  std::string data;
  MatchOptions match;
  std::int64_t show = 0;
  bool json = false;
};

Status eval_match(const MatchCommand& options) {
  TRIMPOT_TRY(const RecordFile file, read_records(options.data));
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  TRIMPOT_TRY(const ChatTemplate chat_template, ChatTemplate::from_gguf(engine->file));
  std::int64_t total = static_cast<std::int64_t>(file.records.size());
  if (options.match.limit > 0) total = std::min(total, options.match.limit);
  const Clock clock;
  TRIMPOT_TRY(
      const MatchResult result,
      exact_match(engine->compute, *engine->model, *engine->tokenizer, chat_template, options.data,
                  file.records, options.match, [&](const MatchResult& so_far) {
                    live(fmt::format("{}/{}  exact {:.1f} %  ETA {}", so_far.total, total,
                                     100.0 * static_cast<double>(so_far.exact) /
                                         static_cast<double>(so_far.total),
                                     clock.eta(so_far.total, total)));
                    return true;
                  }));
  live("");
  const double share = 100.0 * static_cast<double>(result.exact) /
                       static_cast<double>(std::max<std::int64_t>(1, result.total));
  if (options.json) {
    Json samples = Json::array();
    for (std::int64_t i = 0; i < std::min<std::int64_t>(options.show, result.total); ++i) {
      const MatchItem& item = result.items[static_cast<std::size_t>(i)];
      samples.push_back(Json{{"question", item.question},
                             {"expected", item.expected},
                             {"answer", item.answer},
                             {"exact", item.exact}});
    }
    return print(Json{{"exact_match", share},
                      {"exact", result.exact},
                      {"total", result.total},
                      {"seconds", clock.seconds()},
                      {"samples", samples}}
                     .dump(-1, ' ', false, Json::error_handler_t::replace) +
                 "\n");
  }
  for (std::int64_t i = 0; i < std::min<std::int64_t>(options.show, result.total); ++i) {
    const MatchItem& item = result.items[static_cast<std::size_t>(i)];
    TRIMPOT_TRY_VOID(
        print(fmt::format("question: {}\nexpected: {}\nanswer:   {}   [{}]\n\n", item.question,
                          item.expected, item.answer, item.exact ? "exact" : "differs")));
  }
  return print(
      fmt::format("exact match: {} of {} ({:.1f} %)\n", result.exact, result.total, share));
}

struct ColumnsOptions {
  ModelOptions model;
  std::string text, module = "q_proj";
  std::int64_t layer = 0, context = 512, windows = 8;
  int bits = 4;
  bool json = false;
};

Status eval_columns(const ColumnsOptions& options) {
  std::size_t kind = 0;
  while (kind < kLinearKinds.size() && kLinearKinds[kind].module != options.module) ++kind;
  if (kind == kLinearKinds.size())
    return fail(
        "--module {}: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj was "
        "expected",
        options.module);
  TRIMPOT_TRY(const std::string text, read_text_file(options.text));
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  const std::vector<TokenId> tokens = engine->tokenizer->encode(text);
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::int64_t most = engine->model->config.context_length;
  if (options.context > most)
    return fail("windows of {} tokens exceed the model's context; use -c {}", options.context,
                most);
  if (count < options.context)
    return fail("{}: {} tokens are less than a window of {}; use a longer text or a smaller -c",
                options.text, count, options.context);
  std::vector<std::vector<TokenId>> windows;
  for (std::int64_t at = 0;
       at + options.context <= count && static_cast<std::int64_t>(windows.size()) < options.windows;
       at += options.context)
    windows.emplace_back(tokens.begin() + at, tokens.begin() + at + options.context);
  Scheme scheme;
  scheme.bits = options.bits;
  scheme.group_size = kWholeRow;
  const std::size_t linear = static_cast<std::size_t>(options.layer) * kLinearKinds.size() + kind;
  TRIMPOT_TRY(const ColumnStudy study,
              study_columns(engine->compute, *engine->model, windows, linear, scheme));
  if (options.json)
    return print(Json{{"tensor", linear_name(linear)},
                      {"bits", options.bits},
                      {"windows", windows.size()},
                      {"sensitivity", study.sensitivity},
                      {"gradient", study.gradient}}
                     .dump() +
                 "\n");
  std::vector<std::size_t> order(study.sensitivity.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return study.sensitivity[a] > study.sensitivity[b];
  });
  std::string table = fmt::format("{:>8}{:>14}{:>14}\n", "channel", "sensitivity", "gradient^2");
  for (std::size_t i = 0; i < std::min<std::size_t>(20, order.size()); ++i)
    table += fmt::format("{:>8}{:>14.4g}{:>14.4g}\n", order[i], study.sensitivity[order[i]],
                         study.gradient[order[i]]);
  return print(table);
}

void add_eval_columns(CLI::App& eval, Action& action) {
  CLI::App* columns = eval.add_subcommand(
      "columns", "Input channels of one layer by sensitivity to quantization, and their gradient");
  auto options = std::make_shared<ColumnsOptions>();
  add_model_options(*columns, options->model, false);
  columns->add_option("-f,--file", options->text, "text file, read as it is")->required();
  columns->add_option("--layer", options->layer, "counted from 0")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  columns->add_option("--module", options->module, "linear layer: q_proj, ..., down_proj")
      ->capture_default_str();
  columns->add_option("--bits", options->bits, "bits of the rounding, channel-wise")
      ->check(CLI::IsMember({3, 4, 8}))
      ->capture_default_str();
  columns->add_option("-c,--ctx-size", options->context, "tokens of a window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  columns->add_option("--chunks", options->windows, "windows to read")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  columns->add_flag("--json", options->json, "one JSON object instead of text");
  columns->footer("Example:\n  trimpot eval columns -m f32.gguf -f text.txt --layer 10");
  columns->callback([options, &action] { action = [options] { return eval_columns(*options); }; });
}

}  // namespace

void add_eval(CLI::App& app, Action& action) {
  CLI::App* eval = app.add_subcommand("eval", "Measure a model: perplexity, exact match");
  eval->require_subcommand(1);

  CLI::App* ppl = eval->add_subcommand("ppl", "Perplexity of a text");
  auto ppl_options = std::make_shared<PplOptions>();
  add_model_options(*ppl, ppl_options->model);
  ppl->add_option("-f,--file", ppl_options->text, "text file, read as it is")->required();
  ppl->add_option("-c,--ctx-size", ppl_options->context,
                  "tokens of a window (default: 512, for --stride paper 2048)")
      ->check(CLI::Range(4, 1 << 24));
  ppl->add_option("--chunks", ppl_options->chunks, "windows to score (default: all)")
      ->check(CLI::NonNegativeNumber);
  ppl->add_option("--stride", ppl_options->stride,
                  "llama: score the second half of each window, as llama.cpp does; paper: all "
                  "positions of non-overlapping windows")
      ->check(CLI::IsMember({"llama", "paper"}))
      ->capture_default_str();
  add_cache_option(*ppl, ppl_options->cache);
  ppl->add_flag("--json", ppl_options->json, "one JSON object instead of text");
  ppl->footer("Example:\n  trimpot eval ppl -m model.gguf -f wiki.test.raw -c 512 --chunks 64");
  ppl->callback(
      [ppl_options, &action] { action = [ppl_options] { return eval_ppl(*ppl_options); }; });

  CLI::App* match = eval->add_subcommand("match", "Greedy answers against the expected ones");
  auto match_options = std::make_shared<MatchCommand>();
  add_model_options(*match, match_options->model);
  match->add_option("--data", match_options->data, "held-out records, as for tune")->required();
  match->add_option("--limit", match_options->match.limit, "records to score (default: all)")
      ->check(CLI::NonNegativeNumber);
  match
      ->add_option("-n,--n-predict", match_options->match.max_tokens, "tokens of an answer at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  match->add_option("--show", match_options->show, "samples to print")
      ->check(CLI::NonNegativeNumber);
  match->add_flag("--json", match_options->json, "one JSON object instead of text");
  match->footer("Example:\n  trimpot eval match -m tuned.gguf --data heldout.jsonl --show 3");
  match->callback([match_options, &action] {
    action = [match_options] { return eval_match(*match_options); };
  });
  add_eval_columns(*eval, action);
}

}  // namespace trimpot::cli
