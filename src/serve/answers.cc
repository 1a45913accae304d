#include "serve/answers.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include "serve/text_stream.h"
#include "text/unicode.h"

namespace trimpot::serve {
namespace {

bool is_utf8(std::string_view bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    const text::CodePoint point = text::decode_utf8(bytes, at);
    if (!point.valid) return false;
    at += point.bytes;
  }
  return true;
}

// Characters that begin in these bytes.
std::int64_t characters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

OrderedJson number_or_null(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson();
}

OrderedJson finish_reason(const Delta& delta) {
  if (!delta.finish) return nullptr;
  return *delta.finish == Finish::kStop ? "stop" : "length";
}

}  // namespace

std::string token_display(std::string_view bytes) {
  if (is_utf8(bytes)) return std::string(bytes);
  std::string out = "bytes:";
  for (const char c : bytes) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return out;
}

std::optional<ApiError> finish_error(Finish finish) {
  switch (finish) {
    case Finish::kStop:
    case Finish::kLength:
      return {};
    case Finish::kCancelled:
      return ApiError(499, "the client went away", "cancelled");
    case Finish::kTimeout:
      return ApiError(504, "the request took longer than the server allows (--timeout)", "timeout");
    case Finish::kShutdown:
      return ApiError(503, "the server is shutting down", "shutdown");
    case Finish::kNoMemory:
      return ApiError(503, "the server is out of memory; try fewer or shorter requests",
                      "out_of_memory");
  }
  return {};
}

AnswerWriter::AnswerWriter(const GenerationRequest& request, const Ticket& ticket,
                           const Tokenizer& tokenizer, std::uint64_t id)
    : request_(request),
      ticket_(ticket),
      tokenizer_(tokenizer),
      id_(fmt::format("{}-{:016x}", request.chat ? "chatcmpl" : "cmpl", id)),
      created_(std::time(nullptr)),
      progress_(ticket.jobs.size()) {}

OrderedJson AnswerWriter::frame(const char* object) const {
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", ticket_.served->name}};
}

// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}, an entry per token.
OrderedJson AnswerWriter::completion_logprobs(const Delta& delta) {
  auto texts = OrderedJson::array(), own = texts, tops = texts, offsets = texts;
  std::int64_t& position = progress_[delta.job].characters;
  const auto add = [&](const TokenScore& score) {
    const std::string_view bytes = tokenizer_.token_bytes(score.token);
    texts.push_back(token_display(bytes));
    own.push_back(number_or_null(score.logprob));
    // A token that begins inside of a character is where that character is.
    const bool inside = !bytes.empty() && (static_cast<unsigned char>(bytes[0]) & 0xc0) == 0x80;
    offsets.push_back(std::max<std::int64_t>(0, position - (inside ? 1 : 0)));
    position += characters(bytes);
    if (std::isnan(score.logprob)) return tops.push_back(nullptr);
    auto top = OrderedJson::object();
    for (const auto& [token, logprob] : score.top)
      top[token_display(tokenizer_.token_bytes(token))] = number_or_null(logprob);
    // With logprobs 0 there is no top; with more the token itself is always among them.
    if (!score.top.empty()) top[texts.back().get<std::string>()] = own.back();
    tops.push_back(std::move(top));
  };
  for (const TokenScore& score : delta.prompt_scores) add(score);
  for (const TokenScore& score : delta.scores) add(score);
  return {
      {"tokens", texts}, {"token_logprobs", own}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

OrderedJson AnswerWriter::chat_logprobs(const Delta& delta) const {
  const auto entry = [&](TokenId token, double logprob) -> OrderedJson {
    const std::string_view bytes = tokenizer_.token_bytes(token);
    auto numbers = OrderedJson::array();
    for (const char c : bytes) numbers.push_back(static_cast<unsigned char>(c));
    return {{"token", token_display(bytes)},
            {"logprob", number_or_null(logprob)},
            {"bytes", std::move(numbers)}};
  };
  auto content = OrderedJson::array();
  for (const TokenScore& score : delta.scores) {
    OrderedJson item = entry(score.token, score.logprob);
    item["top_logprobs"] = OrderedJson::array();
    for (const auto& [token, logprob] : score.top)
      item["top_logprobs"].push_back(entry(token, logprob));
    content.push_back(std::move(item));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

OrderedJson AnswerWriter::choice(const Delta& delta, bool streamed) {
  Progress& progress = progress_[delta.job];
  const bool first = !progress.begun;
  progress.begun = true;
  const bool scored = ticket_.jobs[delta.job].top >= 0;
  OrderedJson out{{"index", delta.job}};
  if (request_.chat) {
    OrderedJson message = OrderedJson::object();
    if (first) message["role"] = "assistant";
    message["content"] = delta.text;
    out[streamed ? "delta" : "message"] = std::move(message);
    out["logprobs"] = scored ? chat_logprobs(delta) : OrderedJson();
  } else {
    std::string text;
    if (first && request_.echo)
      text = valid_utf8(request_.prompts[delta.job / static_cast<std::size_t>(request_.choices)]);
    out["text"] = text + delta.text;
    out["logprobs"] = scored ? completion_logprobs(delta) : OrderedJson();
  }
  out["finish_reason"] = finish_reason(delta);
  return out;
}

void AnswerWriter::count(const Delta& delta) {
  generated_ += delta.tokens;
  if (delta.finish && ticket_.jobs[delta.job].leader < 0) cached_ += delta.cached_tokens;
}

OrderedJson AnswerWriter::usage() const {
  std::int64_t prompt = 0;
  for (const Job& job : ticket_.jobs)
    if (job.leader < 0) prompt += static_cast<std::int64_t>(job.prompt.size());
  return {{"prompt_tokens", prompt},
          {"completion_tokens", generated_},
          {"total_tokens", prompt + generated_},
          {"prompt_tokens_details", {{"cached_tokens", cached_}}}};
}

std::string AnswerWriter::event(const Delta& delta) {
  count(delta);
  OrderedJson out = frame(request_.chat ? "chat.completion.chunk" : "text_completion");
  out["choices"] = OrderedJson::array({choice(delta, true)});
  if (request_.stream_usage) out["usage"] = nullptr;
  return "data: " + dump(out) + "\n\n";
}

std::string AnswerWriter::last_events() {
  std::string events;
  if (request_.stream_usage) {
    OrderedJson out = frame(request_.chat ? "chat.completion.chunk" : "text_completion");
    out["choices"] = OrderedJson::array();
    out["usage"] = usage();
    events = "data: " + dump(out) + "\n\n";
  }
  return events + "data: [DONE]\n\n";
}

std::string AnswerWriter::whole(const std::vector<Delta>& deltas) {
  std::vector<OrderedJson> choices(ticket_.jobs.size());
  for (const Delta& delta : deltas) {
    count(delta);
    choices[delta.job] = choice(delta, false);
  }
  OrderedJson out = frame(request_.chat ? "chat.completion" : "text_completion");
  out["choices"] = choices;
  out["usage"] = usage();
  return dump(out);
}

}  // namespace trimpot::serve
