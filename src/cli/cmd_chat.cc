#include <unistd.h>

#include <cerrno>

#include "cli/command.h"
#include "cli/engine.h"
#include "model/session.h"
#include "text/chat_template.h"

namespace trimpot::cli {
namespace {

struct ChatOptions {
  ModelOptions model;
  SamplerOptions sampler;
  std::string cache = "f16";
  std::string system;
  std::string prompt;
  std::int64_t context = 2048;
  int count = 512;
};

// One line from stdin, without its end; nothing at the end of the input or on Ctrl-C.
std::optional<std::string> read_line() {
  std::string line;
  for (;;) {
    char c;
    const ssize_t got = ::read(STDIN_FILENO, &c, 1);
    if (got < 0 && errno == EINTR && !interrupted()) continue;
    if (got <= 0) return line.empty() ? std::nullopt : std::optional(line);
    if (c == '\n') return line;
    line += c;
  }
}

class Chat {
 public:
  Chat(const ChatOptions& options, Engine& engine, ChatTemplate chat_template)
      : options_(options),
        engine_(engine),
        template_(std::move(chat_template)),
        session_(engine.compute, *engine.model,
                 std::min(options.context, engine.model->config.context_length),
                 cache_type(options.cache)),
        sampler_(options.sampler),
        logits_(static_cast<std::size_t>(engine.model->config.vocabulary)) {
    reset();
  }

  void reset() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }

  // Adds the user's message, streams the answer, remembers both.
  Status answer(const std::string& text) {
    messages_.push_back({"user", text});
    TRIMPOT_TRY(const EncodedChat chat, template_.encode(*engine_.tokenizer, messages_, true));
    // Only what is new since the last turn goes through the model.
    std::size_t same = 0;
    while (same < seen_.size() && same + 1 < chat.ids.size() && seen_[same] == chat.ids[same])
      ++same;
    session_.truncate(static_cast<std::int64_t>(same));
    seen_ = chat.ids;
    const auto left = session_.context() - static_cast<std::int64_t>(chat.ids.size());
    if (left <= 0) {
      messages_.pop_back();
      seen_.resize(same);
      const bool whole = session_.context() == engine_.model->config.context_length;
      return fail("the conversation has {} tokens and the context {}; type /reset{}",
                  chat.ids.size(), session_.context(), whole ? "" : ", or start with a larger -c");
    }
    TRIMPOT_TRY_VOID(session_.append(std::span(chat.ids).subspan(same), logits_.data()));
    std::string reply;
    for (int made = 0; made < options_.count && made < left && !interrupted(); ++made) {
      const TokenId token =
          sampler_.sample(std::span(logits_).first(engine_.tokenizer->vocabulary_size()));
      if (engine_.tokenizer->is_end_of_generation(token)) break;
      const std::string_view piece = engine_.tokenizer->token_bytes(token);
      reply += piece;
      TRIMPOT_TRY_VOID(print(std::string(piece)));
      if (made + 1 == left) break;
      seen_.push_back(token);
      TRIMPOT_TRY_VOID(session_.append({&token, 1}, logits_.data()));
    }
    messages_.push_back({"assistant", reply});
    return print("\n");
  }

 private:
  const ChatOptions& options_;
  Engine& engine_;
  ChatTemplate template_;
  Session session_;
  Sampler sampler_;
  std::vector<float> logits_;
  std::vector<Message> messages_;
  std::vector<TokenId> seen_;  // what the session holds
};

Status chat(const ChatOptions& options) {
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  TRIMPOT_TRY(ChatTemplate chat_template, ChatTemplate::from_gguf(engine->file));
  Chat chat(options, *engine, std::move(chat_template));
  watch_interrupts();
  if (!options.prompt.empty()) return chat.answer(options.prompt);
  const bool terminal = ::isatty(STDIN_FILENO) != 0;
  if (terminal) note("Ctrl-C stops an answer, /reset forgets the conversation, /exit leaves.");
  for (;;) {
    if (terminal) TRIMPOT_TRY_VOID(print("\n> "));
    const auto line = read_line();
    if (!line || *line == "/exit") return {};
    if (line->empty()) continue;
    if (*line == "/reset") {
      chat.reset();
      continue;
    }
    clear_interrupt();
    if (const Status status = chat.answer(*line); !status) {
      if (!terminal) return status;
      note("trimpot: " + status.error().message);
    }
    if (terminal) clear_interrupt();
  }
}

}  // namespace

void add_chat(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("chat", "Talk to a model in its own chat format");
  auto options = std::make_shared<ChatOptions>();
  options->sampler.temperature = 0.7f;
  add_model_options(*command, options->model);
  command->add_option("--system", options->system, "system message (default: the model's own)");
  command->add_option("-p,--prompt", options->prompt, "one message: print the answer and leave");
  command->add_option("-c,--ctx-size", options->context, "tokens of conversation to keep")
      ->check(CLI::Range(16, 1 << 24))
      ->capture_default_str();
  command->add_option("-n,--n-predict", options->count, "tokens of an answer at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add_cache_option(*command, options->cache);
  add_sampler_options(*command, options->sampler);
  command->footer(
      "Examples:\n  trimpot chat -m model.gguf\n"
      "  trimpot chat -m model.gguf -p \"Name three colours.\" --temp 0");
  command->callback([options, &action] { action = [options] { return chat(*options); }; });
}

}  // namespace trimpot::cli
