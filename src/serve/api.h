// The server's endpoints, apart from HTTP itself (http.h).
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/adapters.h"
#include "serve/engine.h"
#include "serve/requests.h"

namespace trimpot::serve {

struct HttpRequest {
  std::string method;  // "GET", "POST", ...; HEAD counts as GET
  std::string path;    // decoded, without query
  std::string body;
  std::string authorization, content_type, origin, host;  // headers
  std::function<bool()> gone;  // whether the client went away; empty: it cannot be known
};

struct HttpReply {
  int status = 200;
  std::string type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  // Instead of a body: gives the next piece, waiting a moment for it (it may be empty); false with
  // the last one. Destroying it gives up the request.
  std::function<bool(std::string&)> stream;
};

// Whether an address to listen on, or a request's Host with or without its port, is this machine by
// itself: no other site's name can be.
bool is_local_name(std::string_view host);

struct ApiOptions {
  std::string api_key;  // empty: everybody is welcome
  bool metrics = false;
  bool local = false;                 // browsers' pages of localhost only
  std::chrono::seconds timeout{600};  // for a request, from its arrival
};

// What /tokenizer_info tells beside what the tokenizer knows.
struct ModelText {
  std::string chat_template;         // as in the file; empty: none
  std::optional<ChatTemplate> chat;  // nothing: none that is known here
};

class Api {
 public:
  Api(Engine& engine, Adapters& adapters, const Tokenizer& tokenizer, ModelText text,
      ApiOptions options);

  // The answer to a request that is refused whatever its body is: unknown path (404), wrong method
  // (405), wrong or missing key (401), a page of another site (403), forms (415).
  std::optional<HttpReply> refuse(const HttpRequest& request) const;
  // Never throws but for lack of memory. Any number of threads at once.
  HttpReply handle(const HttpRequest& request);

  static HttpReply error_reply(const ApiError& error);
  static HttpReply json_reply(const OrderedJson& json);

 private:
  using Handler = HttpReply (Api::*)(const HttpRequest&);
  struct Route {
    const char* method;
    const char* path;  // with a '/' at its end: whatever follows
    bool open;         // also without a key
    Handler handler;
  };
  static const std::vector<Route>& routes();
  static const Route* find_route(const HttpRequest& request, bool any_method);

  HttpReply page(const HttpRequest&);
  HttpReply health(const HttpRequest&);
  HttpReply models(const HttpRequest&);
  HttpReply model(const HttpRequest& request);
  HttpReply completions(const HttpRequest& request);
  HttpReply chat(const HttpRequest& request);
  HttpReply embeddings(const HttpRequest&);
  HttpReply tokenize(const HttpRequest& request);
  HttpReply detokenize(const HttpRequest& request);
  HttpReply tokenizer_info(const HttpRequest&);
  HttpReply metrics(const HttpRequest&);
  HttpReply load_lora(const HttpRequest& request);
  HttpReply unload_lora(const HttpRequest& request);
  HttpReply list_adapters(const HttpRequest&);
  HttpReply load_adapter(const HttpRequest& request);
  HttpReply unload_adapter(const HttpRequest& request);
  HttpReply lora_list(const HttpRequest&);

  HttpReply generate(const HttpRequest& http, Parsed<GenerationRequest> parsed);
  HttpReply load(const std::string& name, const std::string& path);
  HttpReply unload(const std::string& name);
  RequestLimits limits() const;

  Engine& engine_;
  Adapters& adapters_;
  const Tokenizer& tokenizer_;
  const ModelText text_;
  const ApiOptions options_;
  std::atomic<std::uint64_t> next_id_;
};

}  // namespace trimpot::serve
