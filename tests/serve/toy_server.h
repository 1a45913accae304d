// A toy model served: engine, adapters and API without HTTP.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "io/test_files.h"
#include "model/session.h"
#include "serve/api.h"
#include "serve/fields.h"
#include "support/compare.h"
#include "support/random.h"
#include "support/toy_model.h"
#include "tune/scales.h"

namespace trimpot::serve {

inline constexpr std::int64_t kToyContext = 96;

class ToyServer {
 public:
  explicit ToyServer(EngineOptions options = {}, ApiOptions api_options = {}) {
    ToyOptions toy_options;  // a head of its own: one tied to the embedding repeats its input
    toy_options.head = ElementType::kQ8_0;
    auto toy = load_toy(toy_file(toy_options), folder.file("toy.gguf"));
    EXPECT_TRUE(toy) << toy.error().message;
    file = std::make_unique<gguf::File>(std::move(toy->file));
    model = std::move(toy->model);
    tokenizer = std::make_unique<Tokenizer>(*Tokenizer::from_gguf(*file));
    overlays = std::make_unique<OverlayCache>(*model, options.parallel);
    adapters = std::make_unique<Adapters>(
        "toy", AdapterBase{folder.file("toy.gguf"), fingerprint(*file)}, *model, *overlays);
    options.context = kToyContext;
    engine = std::make_unique<Engine>(compute, *model, *tokenizer, *overlays, options);
    ModelText text{"template", std::move(*ChatTemplate::from_gguf(*file))};
    api = std::make_unique<Api>(*engine, *adapters, *tokenizer, std::move(text),
                                std::move(api_options));
  }

  // Writes an adapter with other scales; different seeds give different ones.
  std::string write_adapter_file(std::uint64_t seed) {
    const std::string path = folder.file("adapter" + std::to_string(seed) + ".safetensors");
    ThreadTeam team(1);
    auto tuned = load_model(*file, team);
    const auto method = make_scale_method(**tuned, ScaleOptions{});
    RandomStream random(seed);
    for (float& value : (*method)->parameters().values.span()) value += 0.5f * random.normal();
    EXPECT_TRUE((*method)->commit(team));
    const auto written =
        write_adapter(path, fingerprint(*file), "peqa", "{}", *(*method)->adapter_tensors());
    EXPECT_TRUE(written) << written.error().message;
    return path;
  }
  void load_adapter(const std::string& name, std::uint64_t seed) {
    const auto loaded = adapters->load(name, write_adapter_file(seed));
    EXPECT_TRUE(loaded) << loaded.error().message;
  }

  HttpReply post(const std::string& path, const std::string& body) {
    HttpRequest request;
    request.method = "POST";
    request.path = path;
    request.body = body;
    return api->handle(request);
  }
  HttpReply get(const std::string& path, const std::string& method = "GET") {
    HttpRequest request;
    request.method = method;
    request.path = path;
    return api->handle(request);
  }
  // The answer as JSON; a stream's events one after the other, in a list.
  Json answer(const std::string& path, const Json& body, int status = 200) {
    HttpReply reply = post(path, body.dump());
    EXPECT_EQ(reply.status, status) << reply.body;
    if (!reply.stream) return Json::parse(reply.body);
    std::string events;
    while (reply.stream(events)) {
    }
    Json list = Json::array();
    for (std::size_t at = 0, end; (end = events.find("\n\n", at)) != std::string::npos;
         at = end + 2) {
      const std::string event = events.substr(at, end - at);
      EXPECT_TRUE(event.starts_with("data: ")) << event;
      list.push_back(event == "data: [DONE]" ? Json("[DONE]") : Json::parse(event.substr(6)));
    }
    return list;
  }

  const TempFolder folder;
  Compute compute{*usable_kernels().front(), Precision::kDefault, 2};
  std::unique_ptr<gguf::File> file;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<OverlayCache> overlays;
  std::unique_ptr<Adapters> adapters;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Api> api;
};

// All deltas of a ticket together, by job.
inline std::vector<Delta> collect(Ticket& ticket) {
  std::vector<Delta> all(ticket.jobs.size());
  for (std::size_t open = ticket.jobs.size(); open > 0;) {
    auto delta = ticket.next(std::chrono::seconds(20));
    if (!delta) {
      ADD_FAILURE() << "no answer";
      return all;
    }
    Delta& sum = all[delta->job];
    EXPECT_FALSE(sum.finish) << "something came after the end";
    sum.text += delta->text;
    sum.tokens += delta->tokens;
    sum.cached_tokens = delta->cached_tokens;
    for (TokenScore& score : delta->prompt_scores) sum.prompt_scores.push_back(std::move(score));
    for (TokenScore& score : delta->scores) sum.scores.push_back(std::move(score));
    sum.finish = delta->finish;
    if (delta->finish) --open;
  }
  return all;
}

}  // namespace trimpot::serve
