// Thousands of requests that are wrong in ways known to be wrong: each gets a 4xx with OpenAI's
// error body, and the server goes on.
#include <gtest/gtest.h>

#include "serve/toy_server.h"

namespace trimpot::serve {
namespace {

struct Target {
  const char* path;
  const char* required;  // a field that has to be there
  Json valid;
  // Values that no field may have, by field.
  std::vector<std::pair<const char*, std::vector<const char*>>> wrong;
};

std::vector<Target> targets() {
  const std::vector<const char*> no_number{"\"1\"", "true", "[]", "{}", "[1]"};
  std::vector<std::pair<const char*, std::vector<const char*>>> common{
      {"model", {"1", "[]", "{}", "false", "[\"toy\"]"}},
      {"temperature", {"-1", "101", "1e300", "-0.001", "\"0\"", "[]", "true"}},
      {"top_p", {"-0.1", "1.01", "1e30", "\"1\"", "[]"}},
      {"min_p", {"-0.1", "1.01", "{}", "\"1\""}},
      {"top_k", {"-2", "2147483648", "1.5", "18446744073709551615", "1e3", "\"4\""}},
      {"seed", {"1.5", "9223372036854775808", "1e30", "\"1\"", "[]"}},
      {"n", {"0", "-1", "129", "1.0", "1e9", "99999999999999999999", "\"1\""}},
      {"max_tokens", {"-1", "1.5", "16777217", "1e18", "\"8\"", "[]"}},
      {"stop",
       {"1", "[1]", "\"\"", "[\"\"]", "{}", "[[\"a\"]]", "true",
        "[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\","
        "\"a\",\"a\",\"a\",\"a\"]"}},
      {"stream", {"1", "\"true\"", "[]"}},
      {"stream_options", {"1", "[]", "{\"include_usage\":1}", "{\"other\":1}"}},
      {"frequency_penalty", {"0.5", "\"0\"", "[]"}},
      {"presence_penalty", {"-1", "{}"}},
      {"logit_bias", {"{\"1\":2}", "1", "[1]"}}};
  auto completion = common, chat = common;
  completion.insert(completion.end(), {{"prompt",
                                        {"1",
                                         "true",
                                         "{}",
                                         "[]",
                                         "\"\"",
                                         "[true]",
                                         "[1.5]",
                                         "[-1]",
                                         "[259]",
                                         "[1e30]",
                                         "[99999999999999999999]",
                                         "[\"a\",1]",
                                         "[1,\"a\"]",
                                         "[[1],\"a\"]",
                                         "[[1],[]]",
                                         "[[]]",
                                         "[[\"a\"]]",
                                         "[[[1]]]",
                                         "[\"\"]",
                                         "[null]",
                                         "[[1],null]"}},
                                       {"echo", {"1", "\"x\"", "[]"}},
                                       {"logprobs", {"-1", "21", "true", "1.5", "\"1\"", "[]"}},
                                       {"suffix", {"\"x\"", "1"}},
                                       {"best_of", {"2", "0", "\"1\""}}});
  chat.insert(chat.end(),
              {{"messages",
                {"1", "[]", "{}", "\"hi\"", "[1]", "[[]]", "[{}]", "[{\"role\":\"user\"}]",
                 "[{\"content\":\"x\"}]", "[{\"role\":\"tool\",\"content\":\"x\"}]",
                 "[{\"role\":1,\"content\":\"x\"}]", "[{\"role\":\"user\",\"content\":1}]",
                 "[{\"role\":\"user\",\"content\":[1]}]",
                 "[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"text\":\"x\"}]}]",
                 "[{\"role\":\"user\",\"content\":\"x\",\"other\":1}]",
                 "[{\"role\":\"user\",\"content\":null}]"}},
               {"logprobs", {"1", "\"true\"", "[]"}},
               {"top_logprobs", {"1", "-1", "21", "\"1\""}},  // logprobs is off
               {"tools", {"[{}]", "1"}},
               {"response_format", {"{\"type\":\"json_object\"}", "1"}}});
  return {{"/v1/completions", "prompt", {{"prompt", "Hi"}, {"max_tokens", 1}}, completion},
          {"/v1/chat/completions",
           "messages",
           {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}, {"max_tokens", 1}},
           chat},
          {"/tokenize",
           "content",
           {{"content", "Hi"}},
           {{"content", {"1", "[]", "true"}}, {"add_special", {"1"}}, {"prompt", {"\"x\"", "1"}}}},
          {"/detokenize",
           "tokens",
           {{"tokens", {70, 71}}},
           {{"tokens", {"1", "\"x\"", "[-1]", "[259]", "[1.5]", "[\"1\"]", "{}", "[[1]]"}}}},
          {"/adapters",
           "path",
           {{"name", "x"}, {"path", "/nowhere"}},
           {{"name", {"1", "[]", "\"a b\""}}, {"path", {"1", "{}"}}}},
          {"/v1/load_lora_adapter",
           "lora_name",
           {{"lora_name", "x"}, {"lora_path", "/nowhere"}},
           {{"lora_name", {"1", "[]"}}, {"lora_path", {"1", "{}"}}}}};
}

class BadRequests : public testing::Test {
 protected:
  void expect_refused(const Target& target, const std::string& body, const char* how) {
    const HttpReply reply = toy_.post(target.path, body);
    EXPECT_GE(reply.status, 400) << how << ": " << target.path << " " << body;
    EXPECT_LT(reply.status, 500) << how << ": " << target.path << " " << body;
    EXPECT_FALSE(reply.stream);
    const Json json = Json::parse(reply.body, nullptr, false);
    ASSERT_TRUE(json.is_object() && json.contains("error")) << reply.body;
    for (const char* field : {"message", "type", "param", "code"})
      EXPECT_TRUE(json["error"].contains(field)) << reply.body;
    EXPECT_FALSE(json["error"]["message"].get<std::string>().empty());
    ++count_;
  }
  ToyServer toy_;
  int count_ = 0;
};

TEST_F(BadRequests, EachIsAnswered) {
  const std::vector<Target> all = targets();
  // Nothing below is refused because the base request was bad already.
  for (int i = 0; i < 2; ++i)
    toy_.answer(all[static_cast<std::size_t>(i)].path, all[static_cast<std::size_t>(i)].valid);
  RandomStream random(1);
  while (count_ < 10000) {
    const Target& target =
        all[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(all.size())))];
    const std::string valid = target.valid.dump();
    const auto at = [&](std::size_t size) {
      return static_cast<std::size_t>(random.below(static_cast<std::int64_t>(size)));
    };
    switch (random.below(8)) {
      case 0:
        expect_refused(target, valid.substr(0, at(valid.size())), "cut short");
        break;
      case 1:
        expect_refused(target, valid + std::string(1, "{}[]\"x,1"[at(8)]), "something behind it");
        break;
      case 2: {
        const auto& [field, values] = target.wrong[at(target.wrong.size())];
        Json body = target.valid;
        body.erase(field);
        std::string text = body.dump();
        text.back() = body.empty() ? ' ' : ',';
        text += '"' + std::string(field) + "\":" + values[at(values.size())] + '}';
        expect_refused(target, text, "wrong value");
        break;
      }
      case 3: {
        Json body = target.valid;
        body["x" + std::to_string(random.below(1000))] = random.below(2) ? Json(1) : Json("y");
        expect_refused(target, body.dump(), "unknown field");
        break;
      }
      case 4: {
        static const char* const kBytes[] = {
            "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xe2\x82", "\xf5\x80\x80\x80", "\x80",
            "\x01", "\n"};
        std::string text = valid;  // inside of the first string
        text.insert(2, kBytes[at(8)]);
        expect_refused(target, text, "no UTF-8, or control characters in a string");
        break;
      }
      case 5:
        expect_refused(target, std::string(17 + at(3000), "[{"[at(2)]), "deep");
        break;
      case 6: {
        static const char* const kBodies[] = {"",
                                              "null",
                                              "1",
                                              "[]",
                                              "\"x\"",
                                              "NaN",
                                              "{}",
                                              "{1:2}",
                                              "{'a':1}",
                                              "{\"n\":NaN}",
                                              "true",
                                              "{\"n\":1e999}",
                                              "{\"n\":Infinity}",
                                              "\xef\xbb\xbf"};
        expect_refused(target, kBodies[at(14)], "other JSON");
        break;
      }
      default: {
        Json body = target.valid;
        body.erase(target.required);
        expect_refused(target, body.dump(), "a field is missing");
      }
    }
  }
  const HttpReply still = toy_.post(all[0].path, all[0].valid.dump());
  EXPECT_EQ(still.status, 200);
}

// Whatever random bytes do to a valid request, there is an answer.
TEST_F(BadRequests, RandomChanges) {
  RandomStream random(2);
  const std::vector<Target> all = targets();
  for (int i = 0; i < 5000; ++i) {
    const Target& target =
        all[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(all.size())))];
    std::string body = target.valid.dump();
    for (std::int64_t n = 1 + random.below(3); n > 0; --n)
      body[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(body.size())))] =
          static_cast<char>(random.below(256));
    const HttpReply reply = toy_.post(target.path, body);
    EXPECT_LT(reply.status, 500) << body;
    if (reply.status == 200) continue;
    EXPECT_TRUE(Json::parse(reply.body).contains("error")) << body;
  }
}

TEST_F(BadRequests, PathsAndMethods) {
  EXPECT_EQ(toy_.get("/nothing").status, 404);
  EXPECT_EQ(toy_.post("/v1/completion", "{}").status, 404);
  const HttpReply reply = toy_.get("/v1/completions");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers.at(0), (std::pair<std::string, std::string>("Allow", "POST")));
  EXPECT_EQ(toy_.post("/v1/models", "{}").status, 405);
  EXPECT_EQ(toy_.post("/v1/embeddings", "{}").status, 501);
}

TEST_F(BadRequests, TooLong) {
  const Json long_prompt = {{"prompt", std::string(kToyContext + 1, 'a')}};
  EXPECT_EQ(toy_.answer("/v1/completions", long_prompt, 400)["error"]["code"],
            "context_length_exceeded");
  Json many = {{"prompt", Json::array()}, {"n", 128}};
  for (int i = 0; i < 3; ++i) many["prompt"].push_back("a");
  toy_.answer("/v1/completions", many, 400);
}

// Fields that clients send although they ask for nothing.
TEST_F(BadRequests, HarmlessFieldsAreAccepted) {
  const Json extra = {{"user", "me"},
                      {"frequency_penalty", 0},
                      {"presence_penalty", 0.0},
                      {"logit_bias", nullptr},
                      {"n", 1},
                      {"store", false},
                      {"metadata", {{"a", 1}}},
                      {"stop", nullptr},
                      {"seed", nullptr}};
  Json completion = {{"prompt", "Hi"}, {"max_tokens", 1}, {"best_of", 1}, {"suffix", nullptr}};
  Json chat = {{"messages",
                {{{"role", "developer"}, {"content", "Be brief."}},
                 {{"role", "user"}, {"content", {{{"type", "text"}, {"text", "Hi"}}}}}}},
               {"max_completion_tokens", 1},
               {"tools", Json::array()},
               {"tool_choice", "none"},
               {"response_format", {{"type", "text"}}}};
  completion.update(extra);
  chat.update(extra);
  toy_.answer("/v1/completions", completion);
  toy_.answer("/v1/chat/completions", chat);
}

}  // namespace
}  // namespace trimpot::serve
