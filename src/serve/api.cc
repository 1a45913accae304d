#include "serve/api.h"

#include <arpa/inet.h>

#include <algorithm>
#include <random>

#include "io/printable.h"
#include "serve/answers.h"
#include "serve/metrics.h"
#include "serve/page.h"

namespace trimpot::serve {
namespace {

ApiError unknown_model(const std::string& name) {
  return {404,
          fmt::format("there is no model or adapter \"{}\"; GET /v1/models lists them",
                      printable(name)),
          "model_not_found", "model"};
}

// Takes as long whatever the first difference is.
bool same_key(const std::string& given, const std::string& key) {
  unsigned difference = given.size() != key.size();
  for (std::size_t i = 0; i < given.size(); ++i)
    difference |= static_cast<unsigned char>(given[i] ^ key[i % key.size()]);
  return difference == 0;
}

OrderedJson model_json(const Served& served, const Served& base, std::int64_t context) {
  OrderedJson json{{"id", served.name},       {"object", "model"},   {"created", served.created},
                   {"owned_by", "trimpot"},   {"root", served.path}, {"parent", nullptr},
                   {"max_model_len", context}};
  if (served.version != 0) json["parent"] = base.name;
  return json;
}

// A request under way: its ticket is given up when nobody wants the answer any more.
struct Pending {
  Pending(GenerationRequest wanted, std::shared_ptr<Ticket> made, const Tokenizer& tokenizer,
          std::uint64_t id)
      : request(std::move(wanted)),
        ticket(std::move(made)),
        writer(request, *ticket, tokenizer, id),
        open(ticket->jobs.size()) {}
  ~Pending() { ticket->cancel(); }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  const GenerationRequest request;
  const std::shared_ptr<Ticket> ticket;
  AnswerWriter writer;
  std::size_t open;  // jobs that have not ended
};

constexpr std::chrono::milliseconds kPatience{50};

// The next events of a stream, all that there are; waits a moment for the first.
bool next_events(Pending& pending, std::string& out) {
  auto delta = pending.ticket->next(kPatience);
  for (; delta; delta = pending.ticket->next(std::chrono::milliseconds(0))) {
    if (delta->finish) {
      --pending.open;
      if (const auto error = finish_error(*delta->finish)) {
        out += "data: " + error_body(*error) + "\n\n";
        return false;
      }
    }
    out += pending.writer.event(*delta);
    if (pending.open > 0) continue;
    out += pending.writer.last_events();
    return false;
  }
  return true;
}

HttpReply whole_answer(Pending& pending, const HttpRequest& http) {
  std::vector<Delta> deltas;
  std::optional<ApiError> error;
  while (pending.open > 0) {
    if (auto delta = pending.ticket->next(kPatience)) {
      --pending.open;
      if (!error) error = finish_error(*delta->finish);
      if (error) pending.ticket->cancel();  // the other jobs are of no use
      deltas.push_back(std::move(*delta));
    }
    if (http.gone && http.gone()) pending.ticket->cancel();
  }
  if (error) return Api::error_reply(*error);
  HttpReply reply;
  reply.body = pending.writer.whole(deltas);
  return reply;
}

}  // namespace

Api::Api(Engine& engine, Adapters& adapters, const Tokenizer& tokenizer, ModelText text,
         ApiOptions options)
    : engine_(engine),
      adapters_(adapters),
      tokenizer_(tokenizer),
      text_(std::move(text)),
      options_(std::move(options)),
      next_id_(std::uint64_t{std::random_device()()} << 32) {}

HttpReply Api::error_reply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = error_body(error);
  if (error.status == 429 || error.status == 503) reply.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  return reply;
}

HttpReply Api::json_reply(const OrderedJson& json) {
  HttpReply reply;
  reply.body = dump(json);
  return reply;
}

const std::vector<Api::Route>& Api::routes() {
  static const std::vector<Route> table{
      {"GET", "/", true, &Api::page},
      {"GET", "/health", true, &Api::health},
      {"GET", "/v1/health", true, &Api::health},
      {"GET", "/v1/models", false, &Api::models},
      {"GET", "/models", false, &Api::models},
      {"GET", "/v1/models/", false, &Api::model},
      {"POST", "/v1/completions", false, &Api::completions},
      {"POST", "/v1/chat/completions", false, &Api::chat},
      {"POST", "/v1/embeddings", false, &Api::embeddings},
      {"POST", "/tokenize", false, &Api::tokenize},
      {"POST", "/detokenize", false, &Api::detokenize},
      {"GET", "/tokenizer_info", false, &Api::tokenizer_info},
      {"GET", "/metrics", false, &Api::metrics},
      {"POST", "/v1/load_lora_adapter", false, &Api::load_lora},
      {"POST", "/v1/unload_lora_adapter", false, &Api::unload_lora},
      {"GET", "/adapters", false, &Api::list_adapters},
      {"POST", "/adapters", false, &Api::load_adapter},
      {"DELETE", "/adapters/", false, &Api::unload_adapter},
      {"GET", "/lora-adapters", false, &Api::lora_list},
  };
  return table;
}

const Api::Route* Api::find_route(const HttpRequest& request, bool any_method) {
  const std::string_view method =
      request.method == "HEAD" ? "GET" : std::string_view(request.method);
  for (const Route& route : routes()) {
    const std::string_view path = route.path;
    const bool prefix = path.size() > 1 && path.ends_with('/');
    const bool fits = prefix ? request.path.starts_with(path) && request.path.size() > path.size()
                             : request.path == path;
    if (fits && (any_method || route.method == method)) return &route;
  }
  return nullptr;
}

std::optional<HttpReply> Api::refuse(const HttpRequest& request) const {
  const Route* route = find_route(request, false);
  if (route == nullptr) {
    const Route* other = find_route(request, true);
    if (other == nullptr) return error_reply({404, "there is nothing at this path", "not_found"});
    HttpReply reply = error_reply(
        {405, fmt::format("{} is not offered here", request.method), "method_not_allowed"});
    reply.headers.emplace_back("Allow", other->method);
    return reply;
  }
  // A browser says which site a page came from; pages of other sites may not use this server.
  if (!request.origin.empty() && request.origin != "http://" + request.host &&
      request.origin != "https://" + request.host)
    return error_reply({403, "requests of pages of another site are refused", "origin"});
  // A site may have its name point to this machine: its pages then have one origin with this
  // server.
  if (!request.origin.empty() && options_.local && !is_local_name(request.host))
    return error_reply(
        {403, "pages are answered at localhost only; --host or --api-key opens that", "host"});
  if (!options_.api_key.empty() && !route->open) {
    constexpr std::string_view kScheme = "Bearer ";
    const bool bearer = request.authorization.starts_with(kScheme);
    if (!bearer || !same_key(request.authorization.substr(kScheme.size()), options_.api_key))
      return error_reply(
          {401, "a valid API key is needed: Authorization: Bearer KEY", "invalid_api_key"});
  }
  if (request.content_type.starts_with("multipart/"))
    return error_reply({415, "the body has to be JSON", "unsupported_media_type"});
  return {};
}

HttpReply Api::handle(const HttpRequest& request) {
  if (auto refused = refuse(request)) return std::move(*refused);
  return (this->*find_route(request, false)->handler)(request);
}

HttpReply Api::page(const HttpRequest&) {
  std::random_device random;
  const std::string nonce = fmt::format("{:08x}{:08x}{:08x}", random(), random(), random());
  HttpReply reply;
  reply.type = "text/html; charset=utf-8";
  std::string_view rest = kPage;
  for (std::size_t at; (at = rest.find(kNonce)) != std::string_view::npos;) {
    reply.body.append(rest.substr(0, at)).append(nonce);
    rest.remove_prefix(at + kNonce.size());
  }
  reply.body += rest;
  reply.headers = {
      {"Content-Security-Policy",
       fmt::format("default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; "
                   "connect-src 'self'; base-uri 'none'; form-action 'none'; "
                   "frame-ancestors 'none'",
                   nonce)},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cache-Control", "no-store"}};
  return reply;
}

HttpReply Api::health(const HttpRequest&) { return json_reply({{"status", "ok"}}); }

HttpReply Api::models(const HttpRequest&) {
  auto data = OrderedJson::array();
  for (const ServedPtr& served : adapters_.list())
    data.push_back(model_json(*served, *adapters_.base(), engine_.options().context));
  return json_reply({{"object", "list"}, {"data", std::move(data)}});
}

HttpReply Api::model(const HttpRequest& request) {
  const std::string name = request.path.substr(std::string_view("/v1/models/").size());
  const ServedPtr served = adapters_.find(name);
  if (!served) return error_reply(unknown_model(name));
  return json_reply(model_json(*served, *adapters_.base(), engine_.options().context));
}

RequestLimits Api::limits() const { return {engine_.options().context, engine_.options().queue}; }

HttpReply Api::completions(const HttpRequest& request) {
  const auto body = parse_object(request.body);
  if (!body) return error_reply(body.error());
  return generate(request, read_completion(*body, tokenizer_, limits()));
}

HttpReply Api::chat(const HttpRequest& request) {
  const auto body = parse_object(request.body);
  if (!body) return error_reply(body.error());
  const ChatTemplate* chat = text_.chat ? &*text_.chat : nullptr;
  return generate(request, read_chat(*body, tokenizer_, chat, limits()));
}

HttpReply Api::generate(const HttpRequest& http, Parsed<GenerationRequest> parsed) {
  if (!parsed) return error_reply(parsed.error());
  auto ticket = std::make_shared<Ticket>();
  ticket->served = adapters_.find(parsed->model);
  if (!ticket->served) return error_reply(unknown_model(parsed->model));
  if (parsed->adapter) {
    ticket->served = adapters_.by_number(*parsed->adapter);
    if (!ticket->served)
      return error_reply({404,
                          "lora: there is no adapter with this id; GET /lora-adapters lists them",
                          "adapter_not_found", "lora"});
  }
  ticket->jobs = std::move(parsed->jobs);
  ticket->stream = parsed->stream;
  ticket->deadline = ticket->arrived + options_.timeout;
  auto pending = std::make_shared<Pending>(std::move(*parsed), ticket, tokenizer_, next_id_++);
  switch (engine_.submit(ticket)) {
    case Engine::Answer::kAccepted:
      break;
    case Engine::Answer::kQueueFull:
      return error_reply(
          {429, "too many requests are waiting; try again in a moment", "queue_full"});
    case Engine::Answer::kStopping:
      return error_reply(*finish_error(Finish::kShutdown));
  }
  if (!pending->request.stream) return whole_answer(*pending, http);
  HttpReply reply;
  reply.type = "text/event-stream";
  reply.headers.emplace_back("Cache-Control", "no-cache");
  reply.stream = [pending](std::string& out) { return next_events(*pending, out); };
  return reply;
}

HttpReply Api::embeddings(const HttpRequest&) {
  return error_reply({501, "embeddings are not offered", "not_implemented"});
}

HttpReply Api::metrics(const HttpRequest&) {
  if (!options_.metrics)
    return error_reply({501, "metrics are off; start the server with --metrics", "metrics_off"});
  HttpReply reply;
  reply.type = "text/plain; version=0.0.4; charset=utf-8";
  reply.body = metrics_text(engine_.state(), adapters_.list());
  return reply;
}

bool is_local_name(std::string_view host) {
  if (host.starts_with('['))  // "[::1]:8080"
    host = host.substr(1, host.find(']') - 1);
  else if (std::count(host.begin(), host.end(), ':') == 1)
    host = host.substr(0, host.find(':'));
  const std::string name(host);
  in_addr ipv4{};
  // Not all that begins with 127: 127.example.org is somebody's.
  const bool loopback =
      ::inet_pton(AF_INET, name.c_str(), &ipv4) == 1 && ntohl(ipv4.s_addr) >> 24 == 127;
  return loopback || name == "localhost" || name == "::1";
}

}  // namespace trimpot::serve
