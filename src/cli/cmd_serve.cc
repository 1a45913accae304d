#include <malloc.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "cli/command.h"
#include "cli/engine.h"
#include "io/printable.h"
#include "serve/http.h"

namespace trimpot::cli {
namespace {

struct ServeOptions {
  ModelOptions model;
  std::vector<std::string> adapters;  // name=path
  std::string api_key;
  std::string cache = "f16";
  serve::EngineOptions engine;
  serve::HttpOptions http;
  bool metrics = false;
  int timeout = 600;  // seconds
};

constexpr std::chrono::seconds kGrace{30};  // for requests at hand when the server is to end

// -c as far as the model goes, and not so much that a tiny model is refused.
std::int64_t context_of(const ServeOptions& options, const Model& model) {
  return std::min(options.engine.context, model.config.context_length);
}

Status load_adapters(const std::vector<std::string>& pairs, serve::Adapters& adapters) {
  for (const std::string& pair : pairs) {
    const std::size_t split = pair.find('=');
    if (split == std::string::npos || split == 0)
      return fail("--adapter {}: say name=path", printable(pair));
    TRIMPOT_TRY(const serve::ServedPtr served,
                adapters.load(pair.substr(0, split), pair.substr(split + 1)));
    note(fmt::format("adapter {}: {} in memory", served->name,
                     format_bytes(static_cast<double>(served->adapter->bytes()))));
  }
  return {};
}

Status serve_model(ServeOptions options) {
  // Adapters and answers are made and freed by hundreds of threads. With glibc's 8 heaps per core
  // each would keep holes of its own.
  ::mallopt(M_ARENA_MAX, 2);
  TRIMPOT_TRY(const auto engine, load_engine(options.model));
  serve::ModelText text;
  if (const auto source = engine->file.get_string("tokenizer.chat_template"))
    text.chat_template = *source;
  if (auto chat = ChatTemplate::from_gguf(engine->file))
    text.chat = std::move(*chat);
  else
    note("no chat: " + chat.error().message);
  serve::OverlayCache overlays(*engine->model, options.engine.parallel);
  serve::Adapters adapters(std::filesystem::path(options.model.model).stem().string(),
                           {options.model.model, fingerprint(engine->file)}, *engine->model,
                           overlays);
  TRIMPOT_TRY_VOID(load_adapters(options.adapters, adapters));
  options.engine.context = context_of(options, *engine->model);
  options.engine.cache = cache_type(options.cache);
  watch_interrupts();
  serve::Engine scheduler(engine->compute, *engine->model, *engine->tokenizer, overlays,
                          options.engine);
  serve::Api api(scheduler, adapters, *engine->tokenizer, std::move(text),
                 {.api_key = options.api_key,
                  .metrics = options.metrics,
                  .local = options.api_key.empty() && serve::is_local_name(options.http.host),
                  .timeout = std::chrono::seconds(options.timeout)});
  // Each request holds a connection until it is answered.
  options.http.connections = options.engine.parallel + options.engine.queue + 64;
  TRIMPOT_TRY(const auto server, serve::HttpServer::listen(api, options.http));
  const bool ipv6 = options.http.host.find(':') != std::string::npos;
  note(fmt::format("{} at http://{}:{} ({} at once, {} tokens each); Ctrl-C ends it",
                   adapters.base()->name, ipv6 ? "[" + options.http.host + "]" : options.http.host,
                   server->port(), options.engine.parallel, options.engine.context));
  while (!interrupted()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    if (!server->running()) {
      scheduler.stop();
      return fail("the system accepts no more connections for this server; start it again");
    }
  }
  note("finishing the requests at hand; Ctrl-C again to leave at once");
  scheduler.drain();
  const auto until = std::chrono::steady_clock::now() + kGrace;
  while ((!scheduler.idle() || server->open_requests() > 0) &&
         std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  scheduler.stop();  // before the server, whose threads wait for answers
  return {};
}

}  // namespace

void add_serve(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "serve", "Answer requests of OpenAI's API, one model with many adapters at once");
  auto options = std::make_shared<ServeOptions>();
  add_model_options(*command, options->model, {.adapter = false, .bf16 = false});
  command
      ->add_option("--adapter", options->adapters,
                   "name=path of an adapter made by trimpot tune; requests choose it by the "
                   "name. Any number of times")
      ->allow_extra_args(false);
  command->add_option("--host", options->http.host, "address to listen on")
      ->check(not_empty())
      ->capture_default_str();
  command->add_option("--port", options->http.port, "port to listen on; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command->add_option("--api-key", options->api_key, "only answer requests with this key")
      ->check(not_empty());
  command
      ->add_option("-c,--ctx-size", options->engine.context,
                   "most tokens of a request's prompt and answer, at most the model's")
      ->check(CLI::Range(16, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("--np,--parallel", options->engine.parallel,
                   "requests that are computed at once (-np does as well)")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      ->add_option("--max-queue", options->engine.queue,
                   "requests that may wait; more are answered with 429")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--timeout", options->timeout, "seconds that a request may take")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  add_cache_option(*command, options->cache);
  command->add_flag("--metrics", options->metrics, "offer /metrics in Prometheus' format");
  command->footer(
      "Examples:\n  trimpot serve -m model.gguf\n"
      "  trimpot serve -m model.gguf --adapter poems=poems.safetensors --adapter "
      "sql=sql.safetensors\n"
      "  curl http://127.0.0.1:8080/v1/chat/completions -d\n"
      "    '{\"model\": \"poems\", \"messages\": [{\"role\": \"user\", \"content\": "
      "\"Hello!\"}]}'");
  command->callback([options, &action] { action = [options] { return serve_model(*options); }; });
}

}  // namespace trimpot::cli
