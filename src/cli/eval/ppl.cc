#include "cli/engine.h"
#include "cli/eval/common.h"
#include "eval/perplexity.h"

namespace trimpot::cli {
namespace {

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

}  // namespace

void add_eval_ppl(CLI::App& eval, Action& action) {
  CLI::App* ppl = eval.add_subcommand("ppl", "Perplexity of a text");
  auto options = std::make_shared<PplOptions>();
  add_model_options(*ppl, options->model);
  ppl->add_option("-f,--file", options->text, "text file, read as it is")->required();
  ppl->add_option("-c,--ctx-size", options->context,
                  "tokens of a window (default: 512, for --stride paper 2048)")
      ->check(CLI::Range(4, 1 << 24));
  ppl->add_option("--chunks", options->chunks, "windows to score (default: all)")
      ->check(whole_number(0));
  ppl->add_option("--stride", options->stride,
                  "llama: score the second half of each window, as llama.cpp does; paper: all "
                  "positions of non-overlapping windows")
      ->check(CLI::IsMember({"llama", "paper"}))
      ->capture_default_str();
  add_cache_option(*ppl, options->cache);
  ppl->add_flag("--json", options->json, "one JSON object instead of text");
  ppl->footer("Example:\n  trimpot eval ppl -m model.gguf -f wiki.test.raw -c 512 --chunks 64");
  ppl->callback([options, &action] { action = [options] { return eval_ppl(*options); }; });
}

}  // namespace trimpot::cli
