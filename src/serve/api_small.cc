// The endpoints of tokenizer and adapters.
#include "io/printable.h"
#include "serve/api.h"
#include "serve/fields.h"
#include "serve/text_stream.h"

namespace trimpot::serve {
namespace {

OrderedJson adapter_json(const Served& served) {
  return {{"name", served.name},
          {"path", served.path},
          {"version", served.version},
          {"bytes", served.adapter ? served.adapter->bytes() : 0},
          {"running", served.usage.running.load()},
          {"waiting", served.usage.waiting.load()}};
}

}  // namespace

// `prompt` as vLLM and lm-eval send it, with special tokens added unless told otherwise; `content`
// as llama-server's clients do, without.
HttpReply Api::tokenize(const HttpRequest& request) {
  const auto body = parse_object(request.body);
  if (!body) return error_reply(body.error());
  Fields fields(*body);
  fields.text("model");
  const auto prompt = fields.text("prompt"), content = fields.text("content");
  const auto add = fields.boolean("add_special"), add_tokens = fields.boolean("add_special_tokens");
  EncodeOptions options;
  options.add_special = add.value_or(add_tokens.value_or(prompt.has_value()));
  options.parse_special = fields.boolean("parse_special").value_or(true);
  if (prompt.has_value() == content.has_value())
    fields.problem("prompt", "has to be the text to tokenize (\"content\" does as well)");
  if (const auto error = fields.error()) return error_reply(*error);
  const auto tokens = tokenizer_.encode(prompt ? *prompt : *content, options);
  return json_reply(
      {{"tokens", tokens}, {"count", tokens.size()}, {"max_model_len", engine_.options().context}});
}

HttpReply Api::detokenize(const HttpRequest& request) {
  const auto body = parse_object(request.body);
  if (!body) return error_reply(body.error());
  Fields fields(*body);
  fields.text("model");
  const auto tokens =
      fields.tokens("tokens", static_cast<std::int64_t>(tokenizer_.vocabulary_size()));
  if (!tokens) fields.problem("tokens", "is missing");
  if (const auto error = fields.error()) return error_reply(*error);
  const std::string text = valid_utf8(tokenizer_.decode(*tokens));
  return json_reply({{"prompt", text}, {"content", text}});
}

HttpReply Api::tokenizer_info(const HttpRequest&) {
  const auto token = [&](const std::optional<TokenId>& id) -> OrderedJson {
    return id ? OrderedJson(std::string(tokenizer_.token_text(*id))) : OrderedJson();
  };
  const auto number = [](const std::optional<TokenId>& id) -> OrderedJson {
    return id ? OrderedJson(*id) : OrderedJson();
  };
  return json_reply(
      {{"tokenizer_class", "trimpot"},
       {"vocab_size", tokenizer_.vocabulary_size()},
       {"model_max_length", engine_.options().context},
       {"bos_token", token(tokenizer_.bos())},
       {"eos_token", token(tokenizer_.eos())},
       {"pad_token", token(tokenizer_.pad())},
       {"bos_token_id", number(tokenizer_.bos())},
       {"eos_token_id", number(tokenizer_.eos())},
       {"pad_token_id", number(tokenizer_.pad())},
       {"add_bos_token", tokenizer_.adds_bos()},
       {"add_eos_token", tokenizer_.adds_eos()},
       {"chat_template",
        text_.chat_template.empty() ? OrderedJson() : OrderedJson(text_.chat_template)}});
}

HttpReply Api::load(const std::string& name, const std::string& path) {
  const auto served = adapters_.load(name, path);
  if (!served) return error_reply({400, valid_utf8(served.error().message), "invalid_adapter"});
  return json_reply(adapter_json(**served));
}

// Requests that use it go on to their end.
HttpReply Api::unload(const std::string& name) {
  if (!adapters_.unload(name))
    return error_reply(
        {404, fmt::format("there is no adapter \"{}\"", printable(name)), "adapter_not_found"});
  return json_reply({{"name", name}, {"unloaded", true}});
}

HttpReply Api::load_lora(const HttpRequest& request) {
  const auto body = parse_object(request.body);
  if (!body) return error_reply(body.error());
  Fields fields(*body);
  const auto name = fields.text("lora_name"), path = fields.text("lora_path");
  if (!name) fields.problem("lora_name", "is missing");
  if (!path) fields.problem("lora_path", "is missing");
  if (const auto error = fields.error()) return error_reply(*error);
  return load(*name, *path);
}

HttpReply Api::unload_lora(const HttpRequest& request) {
  const auto body = parse_object(request.body);
  if (!body) return error_reply(body.error());
  Fields fields(*body);
  const auto name = fields.text("lora_name");
  if (!name) fields.problem("lora_name", "is missing");
  fields.ignore({"lora_int_id"});
  if (const auto error = fields.error()) return error_reply(*error);
  return unload(*name);
}

HttpReply Api::list_adapters(const HttpRequest&) {
  auto list = OrderedJson::array();
  for (const ServedPtr& served : adapters_.list())
    if (served->version != 0) list.push_back(adapter_json(*served));
  return json_reply({{"base", adapters_.base()->name}, {"adapters", std::move(list)}});
}

HttpReply Api::load_adapter(const HttpRequest& request) {
  const auto body = parse_object(request.body);
  if (!body) return error_reply(body.error());
  Fields fields(*body);
  const auto name = fields.text("name"), path = fields.text("path");
  if (!name) fields.problem("name", "is missing");
  if (!path) fields.problem("path", "is missing");
  if (const auto error = fields.error()) return error_reply(*error);
  return load(*name, *path);
}

HttpReply Api::unload_adapter(const HttpRequest& request) {
  return unload(request.path.substr(std::string_view("/adapters/").size()));
}

// llama-server's list: every adapter is there, and none is applied unless a request asks for it.
// Ids stay what they are when others come and go.
HttpReply Api::lora_list(const HttpRequest&) {
  auto list = OrderedJson::array();
  for (const ServedPtr& served : adapters_.list())
    if (served->version != 0)
      list.push_back({{"id", served->version - 1}, {"path", served->path}, {"scale", 0.0}});
  return json_reply(list);
}

}  // namespace trimpot::serve
