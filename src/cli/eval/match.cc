#include "eval/match.h"

#include <algorithm>

#include "cli/engine.h"
#include "cli/eval/common.h"
#include "data/records.h"
#include "text/chat_template.h"

namespace trimpot::cli {
namespace {

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

}  // namespace

void add_eval_match(CLI::App& eval, Action& action) {
  CLI::App* match = eval.add_subcommand("match", "Greedy answers against the expected ones");
  auto options = std::make_shared<MatchCommand>();
  add_model_options(*match, options->model);
  match->add_option("--data", options->data, "held-out records, as for tune")->required();
  match->add_option("--limit", options->match.limit, "records to score (default: all)")
      ->check(whole_number(0));
  match->add_option("-n,--n-predict", options->match.max_tokens, "tokens of an answer at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  match->add_option("--show", options->show, "samples to print")->check(whole_number(0));
  match->add_flag("--json", options->json, "one JSON object instead of text");
  match->footer("Example:\n  trimpot eval match -m tuned.gguf --data heldout.jsonl --show 3");
  match->callback([options, &action] { action = [options] { return eval_match(*options); }; });
}

}  // namespace trimpot::cli
