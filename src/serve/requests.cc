#include "serve/requests.h"

#include <algorithm>
#include <random>

namespace trimpot::serve {
namespace {

constexpr std::int64_t kMostChoices = 128;
constexpr std::int64_t kMostTop = 20;
constexpr std::size_t kMostStops = 16, kMostStopBytes = 4096;
constexpr std::int64_t kMostTokens = 1 << 24;
constexpr std::int64_t kCompletionTokens = 16;  // OpenAI's default

// Choice k of a prompt draws its own numbers; choice 0 what the seed alone gives.
std::uint64_t choice_seed(std::uint64_t seed, std::int64_t choice) {
  return seed + static_cast<std::uint64_t>(choice) * 0x9e3779b97f4a7c15u;
}

// "lora": [{"id": 0, "scale": 1}], as llama-server has it: what is not listed or has a scale of 0
// is not used. Scales of groups are final values, so an adapter is used whole or not at all.
std::optional<std::uint64_t> read_lora(Fields& fields) {
  const Json* list = fields.any("lora");
  if (list == nullptr) return {};
  constexpr const char* kWanted =
      "has to be a list of {\"id\": an adapter's in GET /lora-adapters, \"scale\": 0 or 1}, "
      "one of them 1 at most";
  std::uint64_t chosen = 0;
  if (!list->is_array()) fields.problem("lora", kWanted);
  for (std::size_t i = 0; list->is_array() && i < list->size(); ++i) {
    const Json& entry = (*list)[i];
    if (!entry.is_object()) {
      fields.problem("lora", kWanted);
      continue;
    }
    Fields inner(entry, fmt::format("lora[{}].", i));
    const auto id = inner.integer("id", 0, INT32_MAX);
    const double scale = inner.number("scale", 0, 1).value_or(0);
    if (inner.error() || !id || (scale != 0 && (scale != 1 || chosen != 0)))
      fields.problem("lora", kWanted);
    else if (scale == 1)
      chosen = static_cast<std::uint64_t>(*id) + 1;
  }
  return chosen;
}

// What both kinds of requests share; fills all jobs' options but their prompts.
void read_common(Fields& fields, GenerationRequest& request, Job& job) {
  request.model = fields.text("model").value_or("");
  request.adapter = read_lora(fields);
  job.sampler.temperature =
      static_cast<float>(fields.number("temperature", 0, 100).value_or(job.sampler.temperature));
  job.sampler.top_p = static_cast<float>(fields.number("top_p", 0, 1).value_or(job.sampler.top_p));
  job.sampler.min_p = static_cast<float>(fields.number("min_p", 0, 1).value_or(job.sampler.min_p));
  const auto top_k = fields.integer("top_k", -1, INT32_MAX).value_or(job.sampler.top_k);
  job.sampler.top_k = static_cast<std::int32_t>(std::max<std::int64_t>(top_k, 0));
  if (const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX))
    job.sampler.seed = static_cast<std::uint64_t>(*seed);
  else
    job.sampler.seed = std::random_device()();
  job.stop = fields.texts("stop", kMostStops).value_or(std::vector<std::string>{});
  // Each choice of each prompt has a copy.
  for (const std::string& stop : job.stop)
    if (stop.size() > kMostStopBytes)
      fields.problem(
          "stop", fmt::format("has a text of {} bytes; {} at most", stop.size(), kMostStopBytes));
  job.ignore_end = fields.boolean("ignore_eos").value_or(false);
  request.choices = fields.integer("n", 1, kMostChoices).value_or(1);
  request.stream = fields.boolean("stream").value_or(false);
  if (const Json* options = fields.any("stream_options")) {
    if (!options->is_object()) {
      fields.problem("stream_options", "has to be an object");
    } else {
      Fields inner(*options, "stream_options.");
      request.stream_usage = inner.boolean("include_usage").value_or(false);
      inner.ignore({"include_obfuscation"});
      if (const auto error = inner.error()) fields.problem("stream_options", error->message);
    }
  }
  // Neutral values of what is not offered; clients send them unasked.
  fields.only("frequency_penalty", {0});
  fields.only("presence_penalty", {0});
  fields.only("repetition_penalty", {1});
  fields.only("repeat_penalty", {1});
  fields.only("logit_bias", {Json::object()});
  fields.ignore({"user", "metadata", "store", "service_tier", "safety_identifier",
                 "prompt_cache_key", "cache_prompt"});
}

// One job per prompt and choice; choices after the first reuse what the first has read.
Parsed<void> add_jobs(GenerationRequest& request, const Job& options,
                      std::vector<std::vector<TokenId>> prompts, const RequestLimits& limits,
                      const char* field) {
  if (prompts.size() * static_cast<std::size_t>(request.choices) > limits.most_jobs)
    return bad_request(fmt::format("{} prompts with {} choices each; a request may have {} in all",
                                   prompts.size(), request.choices, limits.most_jobs),
                       field);
  for (std::vector<TokenId>& prompt : prompts) {
    if (prompt.empty()) return bad_request(fmt::format("{} has no tokens", field), field);
    if (static_cast<std::int64_t>(prompt.size()) > limits.context) {
      return bad_request(
          fmt::format("the prompt has {} tokens, and the context {} (-c of trimpot serve sets it)",
                      prompt.size(), limits.context),
          field, "context_length_exceeded");
    }
    const auto leader = static_cast<int>(request.jobs.size());
    for (std::int64_t choice = 0; choice < request.choices; ++choice) {
      Job job = options;
      job.prompt = prompt;
      job.sampler.seed = choice_seed(options.sampler.seed, choice);
      if (choice > 0) job.leader = leader;
      request.jobs.push_back(std::move(job));
    }
  }
  return {};
}

// `prompt`: a text, texts, token ids, or lists of token ids.
Parsed<std::vector<std::vector<TokenId>>> read_prompts(const Json& prompt,
                                                       const Tokenizer& tokenizer,
                                                       const RequestLimits& limits) {
  // As `tokenizers` reads a text: special tokens that are written out count as such.
  const EncodeOptions as_written{true, true};
  const auto vocabulary = static_cast<std::int64_t>(tokenizer.vocabulary_size());
  std::vector<std::vector<TokenId>> prompts;
  if (prompt.is_string()) {
    prompts.push_back(tokenizer.encode(prompt.get_ref<const std::string&>(), as_written));
    return prompts;
  }
  const bool is_list = prompt.is_array() && !prompt.empty();
  if (is_list && prompt[0].is_number()) {
    auto tokens = token_list(prompt, vocabulary, "prompt");
    if (!tokens) return tl::make_unexpected(tokens.error());
    prompts.push_back(std::move(*tokens));
    return prompts;
  }
  if (!is_list || !(prompt[0].is_string() || prompt[0].is_array()))
    return bad_request(
        "prompt has to be a text, a list of texts, a list of token ids or a list of such lists",
        "prompt");
  if (prompt.size() > limits.most_jobs)
    return bad_request(
        fmt::format("{} prompts; a request may have {}", prompt.size(), limits.most_jobs),
        "prompt");
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    const Json& each = prompt[i];
    const std::string name = fmt::format("prompt[{}]", i);
    if (each.type() != prompt[0].type())
      return bad_request(fmt::format("{} is of another type than prompt[0]", name), name);
    if (each.is_string()) {
      prompts.push_back(tokenizer.encode(each.get_ref<const std::string&>(), as_written));
      continue;
    }
    auto tokens = token_list(each, vocabulary, name);
    if (!tokens) return tl::make_unexpected(tokens.error());
    prompts.push_back(std::move(*tokens));
  }
  return prompts;
}

// A text, or a list of parts that are texts.
Parsed<std::string> read_content(const Json* content, const std::string& name) {
  if (content != nullptr && content->is_string()) return content->get<std::string>();
  std::string text;
  bool good = content != nullptr && content->is_array();
  for (std::size_t i = 0; good && i < content->size(); ++i) {
    const Json& part = (*content)[i];
    good = part.is_object() && part.size() == 2 && part.value("type", Json()) == "text" &&
           part.contains("text") && part["text"].is_string();
    if (good) text += part["text"].get_ref<const std::string&>();
  }
  if (good) return text;
  return bad_request(
      fmt::format("{} has to be a text or a list of {{\"type\": \"text\", \"text\": ...}}", name),
      name);
}

Parsed<std::vector<Message>> read_messages(const Json* messages) {
  if (messages == nullptr || !messages->is_array() || messages->empty())
    return bad_request("messages has to be a list of at least one message", "messages");
  std::vector<Message> out;
  for (std::size_t i = 0; i < messages->size(); ++i) {
    const std::string path = fmt::format("messages[{}]", i);
    if (!(*messages)[i].is_object())
      return bad_request(fmt::format("{} has to be an object", path), path);
    Fields fields((*messages)[i], path + ".");
    Message message;
    message.role = fields.text("role").value_or("");
    if (message.role == "developer") message.role = "system";  // OpenAI's newer name
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      fields.problem("role", "has to be \"system\", \"user\" or \"assistant\"");
    auto content = read_content(fields.any("content"), fields.full_name("content"));
    fields.ignore({"name", "refusal", "annotations", "audio"});
    fields.only("tool_calls", {Json::array()});
    fields.only("function_call", {Json()});
    if (const auto error = fields.error()) return tl::make_unexpected(*error);
    if (!content) return tl::make_unexpected(content.error());
    message.content = std::move(*content);
    out.push_back(std::move(message));
  }
  return out;
}

}  // namespace

Parsed<GenerationRequest> read_completion(const Json& body, const Tokenizer& tokenizer,
                                          const RequestLimits& limits) {
  GenerationRequest request;
  Job job;
  Fields fields(body);
  read_common(fields, request, job);
  job.max_tokens = fields.integer("max_tokens", 0, kMostTokens).value_or(kCompletionTokens);
  request.echo = fields.boolean("echo").value_or(false);
  job.top = static_cast<int>(fields.integer("logprobs", 0, kMostTop).value_or(-1));
  job.score_prompt = request.echo && job.top >= 0;
  fields.only("suffix", {""});
  const auto best_of = fields.integer("best_of", 1, kMostChoices);
  if (best_of && *best_of != request.choices)
    fields.problem("best_of", "is not supported; leave it out, or use n");
  const Json* prompt = fields.any("prompt");
  if (const auto error = fields.error()) return tl::make_unexpected(*error);
  if (prompt == nullptr) return bad_request("prompt is missing", "prompt");
  auto prompts = read_prompts(*prompt, tokenizer, limits);
  if (!prompts) return tl::make_unexpected(prompts.error());
  if (request.echo)
    for (const auto& tokens : *prompts) request.prompts.push_back(tokenizer.decode(tokens));
  const auto added = add_jobs(request, job, std::move(*prompts), limits, "prompt");
  if (!added) return tl::make_unexpected(added.error());
  return request;
}

Parsed<GenerationRequest> read_chat(const Json& body, const Tokenizer& tokenizer,
                                    const ChatTemplate* chat, const RequestLimits& limits) {
  GenerationRequest request;
  request.chat = true;
  Job job;
  Fields fields(body);
  read_common(fields, request, job);
  const auto most = fields.integer("max_completion_tokens", 0, kMostTokens);
  job.max_tokens = fields.integer("max_tokens", 0, kMostTokens).value_or(kMostTokens);
  if (most) job.max_tokens = *most;
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, kMostTop);
  if (top && !logprobs) fields.problem("top_logprobs", "needs logprobs to be true");
  if (logprobs) job.top = static_cast<int>(top.value_or(0));
  fields.only("tools", {Json::array()});
  fields.only("functions", {Json::array()});
  fields.only("tool_choice", {"none", "auto"});
  fields.only("function_call", {"none", "auto"});
  fields.only("response_format", {Json{{"type", "text"}}});
  fields.only("modalities", {Json::array({"text"})});
  fields.ignore({"parallel_tool_calls", "reasoning_effort", "verbosity"});
  const auto messages = read_messages(fields.any("messages"));
  if (const auto error = fields.error()) return tl::make_unexpected(*error);
  if (!messages) return tl::make_unexpected(messages.error());
  if (chat == nullptr)
    return bad_request("this model has no chat template that is known here; use /v1/completions");
  const auto encoded = chat->encode(tokenizer, *messages, true);
  if (!encoded) return bad_request(encoded.error().message, "messages");
  const auto added = add_jobs(request, job, {encoded->ids}, limits, "messages");
  if (!added) return tl::make_unexpected(added.error());
  return request;
}

}  // namespace trimpot::serve
