#include "serve/metrics.h"

#include <ctime>

namespace trimpot::serve {
namespace {

class Writer {
 public:
  explicit Writer(const std::vector<ServedPtr>& served) : served_(served) {}

  void header(const char* name, const char* type, const char* help) {
    out += fmt::format("# HELP trimpot_{0} {2}\n# TYPE trimpot_{0} {1}\n", name, type, help);
  }
  template <typename T>
  void single(const char* name, const char* type, const char* help, T value) {
    header(name, type, help);
    out += fmt::format("trimpot_{} {}\n", name, value);
  }
  // One line per adapter; names hold nothing that needs escaping (check_name in adapters.cc), but
  // the base's is a file's name.
  template <typename Get>
  void each(const char* name, const char* type, const char* help, Get get) {
    header(name, type, help);
    for (const ServedPtr& one : served_)
      out += fmt::format("trimpot_{}{{adapter=\"{}\"}} {}\n", name, label(*one), get(one->usage));
  }
  void histogram(const char* name, const char* help, Histogram Usage::*which) {
    header(name, "histogram", help);
    for (const ServedPtr& one : served_) {
      const Histogram& histogram = one->usage.*which;
      std::uint64_t total = 0;
      for (std::size_t i = 0; i <= Histogram::kBounds.size(); ++i) {
        total += histogram.count(i);
        const std::string bound =
            i < Histogram::kBounds.size() ? fmt::format("{}", Histogram::kBounds[i]) : "+Inf";
        out += fmt::format("trimpot_{}_bucket{{adapter=\"{}\",le=\"{}\"}} {}\n", name, label(*one),
                           bound, total);
      }
      out += fmt::format(
          "trimpot_{0}_sum{{adapter=\"{1}\"}} {2}\n"
          "trimpot_{0}_count{{adapter=\"{1}\"}} {3}\n",
          name, label(*one), histogram.sum(), total);
    }
  }
  static std::string label(const Served& served) {
    std::string out;
    for (const char c : served.name) {
      if (c == '"' || c == '\\') out += '\\';
      out += c == '\n' ? ' ' : c;
    }
    return out;
  }

  std::string out;

 private:
  const std::vector<ServedPtr>& served_;
};

}  // namespace

std::string metrics_text(const EngineState& state, const std::vector<ServedPtr>& served) {
  Writer w(served);
  w.each("num_requests_running", "gauge", "Continuations that are being computed.",
         [](const Usage& u) { return u.running.load(); });
  w.each("num_requests_waiting", "gauge", "Continuations that wait for their turn.",
         [](const Usage& u) { return u.waiting.load(); });
  w.single("kv_cache_usage_perc", "gauge", "Share of the context of all places in use, 0 to 1.",
           state.kv_usage);
  w.single("decode_steps_total", "counter", "Passes over the model.", state.steps);
  w.each("prompt_tokens_total", "counter", "Tokens of prompts.",
         [](const Usage& u) { return u.prompt_tokens.load(); });
  w.each("prompt_tokens_cached_total", "counter", "Tokens of prompts found in the cache.",
         [](const Usage& u) { return u.cached_tokens.load(); });
  w.each("generation_tokens_total", "counter", "Tokens generated.",
         [](const Usage& u) { return u.generated_tokens.load(); });
  w.header("requests_total", "counter", "Continuations that ended, by how.");
  for (const ServedPtr& one : served) {
    const Usage& u = one->usage;
    const std::string name = Writer::label(*one);
    for (const auto& [how, count] : {std::pair<const char*, std::uint64_t>{"stop", u.stopped},
                                     {"length", u.reached_length},
                                     {"cancelled", u.cancelled},
                                     {"failed", u.failed}})
      w.out += fmt::format("trimpot_requests_total{{adapter=\"{}\",finished_reason=\"{}\"}} {}\n",
                           name, how, count);
  }
  w.histogram("time_to_first_token_seconds", "From arrival to the first token.",
              &Usage::first_token);
  w.histogram("e2e_request_latency_seconds", "From arrival to the end.", &Usage::whole);
  // What the Kubernetes inference gateway reads: names as lists, the value is the time.
  std::string running, waiting;
  for (const ServedPtr& one : served) {
    if (one->version == 0) continue;
    if (one->usage.running > 0) running += (running.empty() ? "" : ",") + Writer::label(*one);
    if (one->usage.waiting > 0) waiting += (waiting.empty() ? "" : ",") + Writer::label(*one);
  }
  w.header("lora_requests_info", "gauge", "Adapters with running and waiting requests.");
  w.out += fmt::format(
      "trimpot_lora_requests_info{{max_lora=\"{}\",running_lora_adapters=\"{}\","
      "waiting_lora_adapters=\"{}\"}} {}\n",
      served.size() - 1, running, waiting, std::time(nullptr));
  return w.out;
}

}  // namespace trimpot::serve
