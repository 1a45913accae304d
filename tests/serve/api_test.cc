// The endpoints, as clients see them.
#include "serve/api.h"

#include <gtest/gtest.h>

#include "serve/answers.h"
#include "serve/toy_server.h"

namespace trimpot::serve {
namespace {

Json chat_body(const std::string& text, int tokens = 8) {
  return {{"messages", {{{"role", "user"}, {"content", text}}}},
          {"max_tokens", tokens},
          {"temperature", 2.0},
          {"min_p", 0},
          {"seed", 7}};
}

TEST(Api, Models) {
  ToyServer toy;
  toy.load_adapter("one", 1);
  const Json list = Json::parse(toy.get("/v1/models").body);
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][0]["id"], "toy");
  EXPECT_EQ(list["data"][0]["parent"], nullptr);
  EXPECT_EQ(list["data"][1]["id"], "one");
  EXPECT_EQ(list["data"][1]["parent"], "toy");
  EXPECT_EQ(list["data"][1]["root"], toy.folder.file("adapter1.safetensors"));
  EXPECT_EQ(Json::parse(toy.get("/v1/models/one").body), list["data"][1]);
  EXPECT_EQ(toy.get("/v1/models/other").status, 404);
  EXPECT_EQ(Json::parse(toy.get("/health").body)["status"], "ok");
  EXPECT_EQ(Json::parse(toy.get("/v1/health").body)["status"], "ok");
}

TEST(Api, ChatAndItsStreamSayTheSame) {
  ToyServer toy;
  Json body = chat_body("Hello!", 12);
  body["n"] = 3;
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json whole = toy.answer("/v1/chat/completions", body);
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["model"], "toy");
  ASSERT_EQ(whole["choices"].size(), 3u);
  EXPECT_NE(whole["choices"][0]["message"]["content"], whole["choices"][1]["message"]["content"]);

  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const Json events = toy.answer("/v1/chat/completions", body);
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events.back(), "[DONE]");
  const Json& usage = events[events.size() - 2];
  EXPECT_EQ(usage["choices"].size(), 0u);
  EXPECT_EQ(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
  EXPECT_EQ(usage["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
  std::vector<std::string> texts(3);
  std::vector<Json> scores(3, Json::array());
  std::vector<Json> ends(3);
  for (std::size_t i = 0; i + 2 < events.size(); ++i) {
    const Json& choice = events[i]["choices"][0];
    const auto index = choice["index"].get<std::size_t>();
    EXPECT_EQ(choice["delta"].contains("role"), texts[index].empty() && scores[index].empty());
    texts[index] += choice["delta"]["content"].get<std::string>();
    for (const Json& score : choice["logprobs"]["content"]) scores[index].push_back(score);
    EXPECT_TRUE(ends[index].is_null()) << "something after the end";
    ends[index] = choice["finish_reason"];
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const Json& choice = whole["choices"][i];
    EXPECT_EQ(choice["message"]["content"], texts[i]);
    EXPECT_EQ(choice["message"]["role"], "assistant");
    EXPECT_EQ(choice["logprobs"]["content"], scores[i]);
    EXPECT_EQ(choice["finish_reason"], ends[i]);
    EXPECT_EQ(scores[i][0]["top_logprobs"].size(), 2u);
  }
}

TEST(Api, AdapterIsChosenByModel) {
  ToyServer toy;
  toy.load_adapter("one", 1);
  Json body = chat_body("Hello!", 20);
  const Json base = toy.answer("/v1/chat/completions", body)["choices"];
  for (const char* name : {"", "toy"}) {
    body["model"] = name;
    EXPECT_EQ(toy.answer("/v1/chat/completions", body)["choices"], base);
  }
  body["model"] = "one";
  const Json tuned = toy.answer("/v1/chat/completions", body);
  EXPECT_EQ(tuned["model"], "one");
  EXPECT_NE(tuned["choices"], base);
  body["model"] = "nobody";
  const Json error = toy.answer("/v1/chat/completions", body, 404)["error"];
  EXPECT_EQ(error["code"], "model_not_found");
  EXPECT_EQ(error["param"], "model");
}

// What lm-eval's local-completions sends and reads.
TEST(Api, PromptScoresForLmEval) {
  ToyServer toy;
  const Json prompts = {{70, 71, 72, 73, 74}, {70, 71, 80}, {90, 91}};
  const Json body = {{"model", "toy"}, {"prompt", prompts}, {"temperature", 0}, {"max_tokens", 1},
                     {"logprobs", 1},  {"seed", 1234},      {"echo", true}};
  const Json answer = toy.answer("/v1/completions", body);
  ASSERT_EQ(answer["choices"].size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    const Json& choice = answer["choices"][i];
    EXPECT_EQ(choice["index"], i);
    const Json& logprobs = choice["logprobs"];
    const std::size_t tokens = prompts[i].size() + 1;
    for (const char* list : {"tokens", "token_logprobs", "top_logprobs", "text_offset"})
      EXPECT_EQ(logprobs[list].size(), tokens) << list;
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_TRUE(logprobs["top_logprobs"][0].is_null());
    for (std::size_t t = 1; t < tokens; ++t) {
      const double own = logprobs["token_logprobs"][t].get<double>();
      const Json& top = logprobs["top_logprobs"][t];
      EXPECT_EQ(top[logprobs["tokens"][t].get<std::string>()].get<double>(), own);
      double best = -1e9;
      for (const auto& [token, logprob] : top.items()) best = std::max(best, logprob.get<double>());
      EXPECT_GE(best, own);
      EXPECT_LE(top.size(), 2u);
    }
    // The generated token is the greedy one: equal as floating-point numbers.
    EXPECT_EQ(logprobs["top_logprobs"][tokens - 1].size(), 1u);
  }
  Json alone = body;
  alone["prompt"] = prompts[2];
  EXPECT_EQ(toy.answer("/v1/completions", alone)["choices"][0]["logprobs"],
            answer["choices"][2]["logprobs"]);
  alone["max_tokens"] = 0;
  const Json none = toy.answer("/v1/completions", alone);
  EXPECT_EQ(none["choices"][0]["logprobs"]["token_logprobs"].size(), 2u);
  EXPECT_EQ(none["usage"]["completion_tokens"], 0);
}

TEST(Api, EchoAndOffsetsCountCharacters) {
  ToyServer toy;
  const std::string text = "a\xe2\x82\xac\xc3\xa9z";  // a, euro, e acute, z
  const Json answer = toy.answer(
      "/v1/completions", {{"prompt", text}, {"echo", true}, {"logprobs", 0}, {"max_tokens", 0}});
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["text"], text);
  EXPECT_EQ(choice["logprobs"]["text_offset"], Json({0, 1, 1, 1, 2, 2, 3}));  // tokens are bytes
  EXPECT_EQ(choice["logprobs"]["tokens"][1], "bytes:\\xe2");
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][1], Json::object());
}

TEST(Api, FormsOfPrompts) {
  ToyServer toy;
  Json body = {{"max_tokens", 6}, {"temperature", 0}};
  const auto choices = [&](const Json& prompt) {
    body["prompt"] = prompt;
    return toy.answer("/v1/completions", body)["choices"];
  };
  const Json one = choices("Hi"), two = choices("Ho");
  const Json both = choices(Json{"Hi", "Ho"});
  EXPECT_EQ(both[0]["text"], one[0]["text"]);
  EXPECT_EQ(both[1]["text"], two[0]["text"]);
  const Json tokens = toy.answer("/tokenize", {{"prompt", "Hi"}})["tokens"];
  EXPECT_EQ(choices(tokens), one);
  EXPECT_EQ(choices(Json::array({tokens})), one);
  EXPECT_EQ(choices(Json::array({tokens, tokens}))[1]["text"], one[0]["text"]);
}

TEST(Api, SeedsAndChoices) {
  ToyServer toy;
  Json body = {{"prompt", "Hi"}, {"max_tokens", 10}, {"temperature", 2.0},
               {"min_p", 0},     {"seed", -5},       {"n", 4}};
  const Json first = toy.answer("/v1/completions", body)["choices"];
  EXPECT_EQ(toy.answer("/v1/completions", body)["choices"], first);
  EXPECT_NE(first[0]["text"], first[1]["text"]);
  body["n"] = 1;
  EXPECT_EQ(toy.answer("/v1/completions", body)["choices"][0]["text"], first[0]["text"]);
  body.erase("seed");
  const Json other = toy.answer("/v1/completions", body)["choices"];
  EXPECT_NE(toy.answer("/v1/completions", body)["choices"], other);
}

TEST(Api, Tokenizer) {
  ToyServer toy;
  const std::string text = "A\xc3\xa9<|im_end|>";
  const Json tokens = toy.answer("/tokenize", {{"content", text}});
  EXPECT_EQ(tokens["tokens"], Json({3 + 'A', 3 + 0xc3, 3 + 0xa9, kToyTurnEnd}));
  EXPECT_EQ(tokens["count"], 4);
  EXPECT_EQ(toy.answer("/tokenize", {{"prompt", text}, {"add_special_tokens", false}})["tokens"],
            tokens["tokens"]);
  const Json back = toy.answer("/detokenize", {{"tokens", tokens["tokens"]}});
  EXPECT_EQ(back["prompt"], text);
  EXPECT_EQ(back["content"], text);
  const Json info = Json::parse(toy.get("/tokenizer_info").body);
  EXPECT_EQ(info["eos_token"], "<|im_end|>");
  EXPECT_EQ(info["bos_token"], "<|im_start|>");
}

// llama-server's words: the same answer as by the adapter's name, under an id that stays.
TEST(Api, ChoosesAdaptersByNumber) {
  ToyServer toy;
  for (const char name : {'a', 'b'}) toy.load_adapter({name}, static_cast<std::uint64_t>(name));
  toy.adapters->unload("a");
  toy.load_adapter("0", 7);  // before "b" in the list
  Json ids = Json::object();
  for (const Json& entry : Json::parse(toy.get("/lora-adapters").body))
    ids[entry["path"].get<std::string>()] = entry["id"];
  const auto answer = [&](const Json& more, int status = 200) {
    Json body{{"prompt", "some text"},
              {"max_tokens", 8},
              {"temperature", 0},
              {"logprobs", 0},
              {"ignore_eos", true}};
    body.update(more);
    return toy.answer("/v1/completions", body, status);
  };
  const auto id = [&](std::uint64_t seed) {
    return ids[toy.folder.file("adapter" + std::to_string(seed) + ".safetensors")];
  };
  EXPECT_EQ(id('b'), 1);
  EXPECT_EQ(id(7), 2);
  const auto by_id = [&](const Json& lora) { return answer({{"lora", lora}}); };
  const auto use = [](const Json& adapter, const Json& scale) {
    return Json::object({{"id", adapter}, {"scale", scale}});
  };
  const Json one = by_id(Json::array({use(1, 1.0), use(2, 0)}));
  EXPECT_EQ(one["model"], "b");
  EXPECT_EQ(one["choices"], answer({{"model", "b"}})["choices"]);
  EXPECT_EQ(by_id(Json::array({use(2, 1)}))["choices"], answer({{"model", "0"}})["choices"]);
  EXPECT_EQ(answer({{"model", "b"}, {"lora", Json::array()}})["choices"],
            answer(Json::object())["choices"]);
  answer({{"lora", Json::array({use(0, 1)})}}, 404);  // unloaded
  for (const Json& wrong :
       {Json("b"), Json::array({1}), Json::array({use(1, 0.5)}), Json::array({use(1, -1)}),
        Json::array({use("b", 1)}), Json::array({Json::object({{"scale", 1}})}),
        Json::array({use(1, 1), use(2, 1)})})
    EXPECT_EQ(answer({{"lora", wrong}}, 400)["error"]["param"], "lora") << wrong;
}

TEST(Api, AdaptersComeAndGo) {
  ToyServer toy;
  const std::string path = toy.write_adapter_file(1);
  const Json loaded =
      toy.answer("/v1/load_lora_adapter", {{"lora_name", "one"}, {"lora_path", path}});
  EXPECT_EQ(loaded["name"], "one");
  EXPECT_GT(loaded["bytes"], 0);
  EXPECT_EQ(toy.answer("/adapters", {{"name", "one"}, {"path", path}}, 400)["error"]["code"],
            "invalid_adapter");
  toy.answer("/adapters", {{"name", "two"}, {"path", path}});
  EXPECT_EQ(Json::parse(toy.get("/adapters").body)["adapters"].size(), 2u);
  EXPECT_EQ(Json::parse(toy.get("/lora-adapters").body).size(), 2u);
  toy.answer("/v1/unload_lora_adapter", {{"lora_name", "one"}});
  toy.answer("/v1/unload_lora_adapter", {{"lora_name", "one"}}, 404);
  EXPECT_EQ(toy.get("/adapters/two", "DELETE").status, 200);
  EXPECT_EQ(toy.get("/adapters/two", "DELETE").status, 404);
  // A missing file and one that is no adapter are errors that say so.
  for (const std::string& wrong : {toy.folder.file("none"), toy.folder.file("toy.gguf")}) {
    const Json error = toy.answer("/adapters", {{"name", "x"}, {"path", wrong}}, 400)["error"];
    EXPECT_NE(error["message"].get<std::string>().find(wrong), std::string::npos) << error;
  }
  for (const std::string& name : {std::string("toy"), std::string(), std::string(200, 'x')})
    toy.answer("/adapters", {{"name", name}, {"path", path}}, 400);
}

TEST(Api, AnAdapterOfAnotherBaseIsRefused) {
  ToyServer toy;
  ToyOptions other;
  other.seed = 2;
  auto base = load_toy(toy_file(other), toy.folder.file("other.gguf"));
  ASSERT_TRUE(base);
  const auto method = make_scale_method(*base->model, ScaleOptions{});
  const std::string path = toy.folder.file("other.safetensors");
  ASSERT_TRUE(
      write_adapter(path, fingerprint(base->file), "peqa", "{}", *(*method)->adapter_tensors()));
  const Json error = toy.answer("/adapters", {{"name", "x"}, {"path", path}}, 400)["error"];
  EXPECT_NE(error["message"].get<std::string>().find("base"), std::string::npos) << error;
}

TEST(Api, Keys) {
  ApiOptions options;
  options.api_key = "secret";
  ToyServer toy({}, options);
  HttpRequest request;
  request.method = "GET";
  request.path = "/v1/models";
  for (const char* wrong : {"", "secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secret2",
                            "Bearer Secret", "Basic secret"}) {
    request.authorization = wrong;
    const HttpReply reply = toy.api->handle(request);
    EXPECT_EQ(reply.status, 401) << wrong;
    EXPECT_EQ(Json::parse(reply.body)["error"]["code"], "invalid_api_key");
  }
  request.authorization = "Bearer secret";
  EXPECT_EQ(toy.api->handle(request).status, 200);
  EXPECT_EQ(toy.get("/health").status, 200);
  EXPECT_EQ(toy.get("/").status, 200);
}

// Catches: a text that each of 128 choices has a copy of, bytes behind a zero that nobody reads.
TEST(Api, LongStopsAndZerosAreRefused) {
  ToyServer toy;
  const Json body = {{"prompt", "a"}, {"max_tokens", 1}, {"stop", std::string(5000, 'z')}};
  const Json error = toy.answer("/v1/completions", body, 400)["error"];
  EXPECT_EQ(error["param"], "stop");
  const std::string text = Json{{"prompt", "a"}, {"max_tokens", 1}}.dump();
  EXPECT_EQ(toy.post("/v1/completions", text).status, 200);
  EXPECT_EQ(toy.post("/v1/completions", text + std::string("\0junk", 5)).status, 400);
  const std::string path = "x.safetensors" + std::string("\0y", 2);
  toy.answer("/adapters", {{"name", "x"}, {"path", path}}, 400);
}

TEST(Api, PagesOfOtherSitesAreRefused) {
  ToyServer toy;
  HttpRequest request;
  request.method = "GET";
  request.path = "/v1/models";
  request.host = "127.0.0.1:8080";
  request.origin = "http://127.0.0.1:8080";
  EXPECT_EQ(toy.api->handle(request).status, 200);
  request.origin = "http://example.org";
  EXPECT_EQ(toy.api->handle(request).status, 403);
  // A name of another site that points here: one origin for the browser.
  request.host = "example.org";
  EXPECT_EQ(toy.api->handle(request).status, 200);  // a proxy's, where the server is meant for it
  ApiOptions options;
  options.local = true;
  ToyServer local({}, options);
  EXPECT_EQ(local.api->handle(request).status, 403);
  for (const char* name : {"127.example.org", "localhost.example.org:80", "::2", ""})
    EXPECT_FALSE(is_local_name(name)) << name;
  EXPECT_TRUE(is_local_name("::1") && is_local_name("127.0.0.2"));  // as --host has them
  for (const char* host : {"localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]"}) {
    request.host = host;
    request.origin = std::string("http://") + host;
    EXPECT_EQ(local.api->handle(request).status, 200) << host;
  }
}

TEST(Api, Metrics) {
  EXPECT_EQ(ToyServer().get("/metrics").status, 501);
  ApiOptions options;
  options.metrics = true;
  ToyServer toy({}, options);
  toy.load_adapter("one", 1);
  Json body = {{"model", "one"}, {"prompt", {70, 71, 72}}, {"max_tokens", 5}, {"temperature", 0}};
  const Json answer = toy.answer("/v1/completions", body);
  const std::string text = toy.get("/metrics").body;
  for (const std::string& line :
       {std::string("trimpot_prompt_tokens_total{adapter=\"one\"} 3"),
        "trimpot_generation_tokens_total{adapter=\"one\"} " +
            answer["usage"]["completion_tokens"].dump(),
        std::string("trimpot_prompt_tokens_total{adapter=\"toy\"} 0"),
        std::string("trimpot_time_to_first_token_seconds_count{adapter=\"one\"} 1"),
        std::string("trimpot_num_requests_running{adapter=\"one\"} 0"),
        std::string("trimpot_lora_requests_info{max_lora=\"1\",running_lora_adapters=\"\"")})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
}

TEST(Api, ThePageNeedsNothingElse) {
  ToyServer toy;
  const HttpReply reply = toy.get("/");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body.find("NONCE"), std::string::npos);
  for (const char* outside : {"http://", "https://", "src=", "@import", "url("})
    EXPECT_EQ(reply.body.find(outside), std::string::npos) << outside;
  const auto policy = std::find_if(reply.headers.begin(), reply.headers.end(), [](const auto& h) {
    return h.first == "Content-Security-Policy";
  });
  ASSERT_NE(policy, reply.headers.end());
  EXPECT_TRUE(policy->second.starts_with("default-src 'none'"));
  EXPECT_NE(toy.get("/").body, reply.body) << "the nonce is to be used once";
}

}  // namespace
}  // namespace trimpot::serve
