// Over a socket of this machine: what HTTP adds to the API.
#include "serve/http.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "serve/toy_server.h"

namespace trimpot::serve {
namespace {

class Http : public testing::Test {
 protected:
  void SetUp() override {
    HttpOptions options;
    options.port = 0;
    options.most_body = 16000;
    options.connections = 24;
    auto server = HttpServer::listen(*toy_.api, options);
    ASSERT_TRUE(server) << server.error().message;
    server_ = std::move(*server);
    ASSERT_GT(server_->port(), 0);
  }
  httplib::Client client() { return httplib::Client("127.0.0.1", server_->port()); }
  // A socket on which anything may be written.
  int dial() {
    const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(server_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return socket;
  }
  static void say(int socket, const std::string& text) {
    EXPECT_EQ(::send(socket, text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  // Everything until the server closes.
  static std::string hear(int socket) {
    std::string text;
    char buffer[4096];
    for (ssize_t got; (got = ::recv(socket, buffer, sizeof buffer, 0)) > 0;)
      text.append(buffer, static_cast<std::size_t>(got));
    ::close(socket);
    return text;
  }
  static std::string post(const std::string& path, const std::string& body,
                          const std::string& more = "") {
    return "POST " + path +
           " HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
           more + "\r\n" + body;
  }
  // Long enough to be caught at work.
  static std::string long_request(bool stream) {
    Json prompts = Json::array();
    for (int i = 0; i < 200; ++i)
      prompts.push_back(std::string(60, static_cast<char>('a' + i % 26)));
    return Json{{"prompt", prompts}, {"max_tokens", 30}, {"stream", stream}, {"ignore_eos", true}}
        .dump();
  }
  bool soon_idle() const {
    for (int i = 0; i < 500 && !toy_.engine->idle(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return toy_.engine->idle();
  }

  ToyServer toy_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(Http, WholeAndStreamedAnswers) {
  auto http = client();
  http.set_keep_alive(true);
  const Json body = {{"prompt", "Hi"}, {"max_tokens", 12}, {"seed", 3}};
  const auto whole = http.Post("/v1/completions", body.dump(), "application/json");
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->status, 200) << whole->body;
  EXPECT_EQ(whole->get_header_value("Content-Type"), "application/json");
  Json streaming = body;
  streaming["stream"] = true;
  const auto events = http.Post("/v1/completions", streaming.dump(), "application/json");
  ASSERT_TRUE(events);
  EXPECT_EQ(events->get_header_value("Content-Type"), "text/event-stream");
  std::string text;
  for (std::size_t at = 0; (at = events->body.find("data: {", at)) != std::string::npos; ++at)
    text += Json::parse(events->body.substr(
        at + 6, events->body.find('\n', at) - at - 6))["choices"][0]["text"]
                .get<std::string>();
  EXPECT_EQ(text, Json::parse(whole->body)["choices"][0]["text"].get<std::string>());
  EXPECT_TRUE(events->body.ends_with("data: [DONE]\n\n"));
}

TEST_F(Http, ErrorsHaveOpenAiBodies) {
  auto http = client();
  const auto expect = [](const httplib::Result& reply, int status) {
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->status, status);
    const Json json = Json::parse(reply->body, nullptr, false);
    EXPECT_TRUE(json.is_object() && json["error"]["message"].is_string()) << reply->body;
  };
  expect(http.Get("/nothing"), 404);
  expect(http.Get("/v1/completions"), 405);
  expect(http.Put("/v1/models", "{}", "application/json"), 405);
  expect(http.Post("/nothing", "{}", "application/json"), 404);
  expect(http.Post("/v1/completions", "{", "application/json"), 400);
  expect(http.Post("/v1/completions", std::string(20000, 'x'), "application/json"), 413);
  expect(http.Post("/v1/completions", httplib::MultipartFormDataItems{{"a", "b", "", ""}}), 415);
  expect(http.Get(("/" + std::string(9000, 'x')).c_str()), 414);
  EXPECT_EQ(http.Get("/health")->status, 200);
}

TEST_F(Http, AnswersAreWholeWhateverRangeIsAsked) {
  auto http = client();
  const std::string whole = http.Get("/tokenizer_info")->body;
  const auto part = http.Get("/tokenizer_info", {{"Range", "bytes=0-3, 1-2, 0-9"}});
  EXPECT_EQ(part->status, 200);
  EXPECT_EQ(part->body, whole);
}

TEST_F(Http, BodiesWithoutALengthAreLimitedToo) {
  const int chunked = dial();
  say(chunked, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string piece(4000, 'x');
  for (int i = 0; i < 5; ++i) say(chunked, "fa0\r\n" + piece + "\r\n");
  EXPECT_TRUE(hear(chunked).starts_with("HTTP/1.1 413"));
  const int none = dial();
  say(none, "POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n");
  ::shutdown(none, SHUT_WR);
  EXPECT_TRUE(hear(none).starts_with("HTTP/1.1 411"));
  const int gibberish = dial();
  say(gibberish, post("/v1/completions", std::string(100, 'x'), "Content-Encoding: gzip\r\n"));
  ::shutdown(gibberish, SHUT_WR);
  EXPECT_TRUE(hear(gibberish).starts_with("HTTP/1.1 400"));
}

// Before anybody is asked for a key. Catches: headers and lines that fill the memory.
TEST_F(Http, HeadersHaveAnEnd) {
  for (const std::string& piece : {std::string("a: b\r\n"), std::string("x")}) {
    const int socket = dial();
    std::string text = "GET /health HTTP/1.1\r\n";
    while (text.size() < 200'000) text += piece;
    // The server closes before all is sent.
    ::send(socket, text.data(), text.size(), MSG_NOSIGNAL);
    EXPECT_FALSE(hear(socket).starts_with("HTTP/1.1 200"));
  }
  EXPECT_EQ(client().Get("/health")->status, 200);
}

// Who stands before this server may count otherwise: the second request would be its client's own.
TEST_F(Http, BodiesOfTwoLengthsAreRefused) {
  const std::string hidden = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
  for (const std::string& lengths :
       {std::string("Content-Length: 2\r\nContent-Length: 40\r\n"),
        std::string("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        std::string("Transfer-Encoding: gzip, chunked\r\n"),
        std::string("Transfer-Encoding: xchunked\r\n")}) {
    const int socket = dial();
    say(socket, "POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + lengths + "\r\n{}" + hidden);
    const std::string answer = hear(socket);
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 400")) << lengths << answer;
    EXPECT_EQ(answer.find("HTTP/1.1", 1), std::string::npos) << lengths << answer;
  }
}

TEST_F(Http, NoiseIsAnsweredAndForgotten) {
  RandomStream random(1);
  for (int i = 0; i < 50; ++i) {
    std::string noise;
    for (int n = 0; n < 200; ++n) noise += static_cast<char>(random.below(256));
    const int socket = dial();
    say(socket, i % 2 == 0 ? noise + "\r\n\r\n" : post("/v1/completions", noise));
    ::shutdown(socket, SHUT_WR);
    const std::string answer = hear(socket);
    EXPECT_TRUE(answer.empty() || answer.starts_with("HTTP/1.1 4")) << answer;
  }
  EXPECT_EQ(client().Get("/health")->status, 200);
}

TEST_F(Http, ADisconnectCancels) {
  // What follows a request is not read while it is answered, and hides nothing.
  for (const auto& [stream, more] : {std::pair{false, ""},
                                     {true, ""},
                                     {false, "\r\n"},
                                     {true, "GET /health HTTP/1.1\r\n\r\n"}}) {
    const std::uint64_t steps = toy_.engine->state().steps;
    const std::uint64_t cancelled = toy_.adapters->base()->usage.cancelled;
    const int socket = dial();
    say(socket, post("/v1/completions", long_request(stream)) + more);
    for (int i = 0; i < 5000 && toy_.engine->state().steps < steps + 3; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_FALSE(toy_.engine->idle());
    ::close(socket);
    EXPECT_TRUE(soon_idle());
    EXPECT_GT(toy_.adapters->base()->usage.cancelled, cancelled) << "stream " << stream;
    EXPECT_EQ(toy_.adapters->base()->usage.running, 0);
    EXPECT_EQ(toy_.adapters->base()->usage.waiting, 0);
  }
}

TEST_F(Http, ManyClientsGetTheirOwnAnswers) {
  toy_.load_adapter("one", 1);
  const auto body = [](int i) {
    return Json{{"model", i % 2 == 0 ? "toy" : "one"},
                {"prompt", "Client " + std::to_string(i % 5)},
                {"max_tokens", 20},
                {"seed", i}}
        .dump();
  };
  std::vector<std::string> alone;
  for (int i = 0; i < 16; ++i)
    alone.push_back(Json::parse(toy_.post("/v1/completions", body(i)).body)["choices"].dump());
  std::vector<std::thread> threads;
  std::atomic<int> same{0};
  for (int i = 0; i < 16; ++i)
    threads.emplace_back([&, i] {
      auto http = client();
      http.set_read_timeout(60);
      for (int round = 0; round < 4; ++round) {
        const auto reply = http.Post("/v1/completions", body(i), "application/json");
        if (reply &&
            Json::parse(reply->body)["choices"].dump() == alone[static_cast<std::size_t>(i)])
          ++same;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(same, 64);
}

TEST_F(Http, APortIsTakenOnce) {
  HttpOptions options;
  options.port = server_->port();
  const auto second = HttpServer::listen(*toy_.api, options);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message.find("--port"), std::string::npos);
}

TEST_F(Http, DrainingLetsRequestsEnd) {
  const int socket = dial();
  const Json body = {{"prompt", "Hi"}, {"max_tokens", 60}, {"stream", true}, {"n", 20}};
  say(socket, post("/v1/completions", body.dump(), "Connection: close\r\n"));
  for (int i = 0; i < 500 && toy_.engine->state().steps < 2; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  toy_.engine->drain();
  EXPECT_EQ(client().Post("/v1/completions", "{\"prompt\":\"Hi\"}", "application/json")->status,
            503);
  EXPECT_NE(hear(socket).find("[DONE]"), std::string::npos);
  server_->stop();
}

}  // namespace
}  // namespace trimpot::serve
