// Adapters made ready for the kernels: bounded, and the same after they were dropped.
#include "serve/overlay_cache.h"

#include <gtest/gtest.h>

#include "serve/toy_server.h"

namespace trimpot::serve {
namespace {

std::vector<f16> all_scales(const Overlay& overlay) {
  std::vector<f16> all;
  for (const LinearOverlay& linear : overlay.linears)
    all.insert(all.end(), linear.scales.data(), linear.scales.data() + linear.scales.size());
  return all;
}

TEST(OverlayCache, KeepsTheOnesUsedLast) {
  ToyServer server;
  for (const char name : {'a', 'b', 'c'})
    server.load_adapter({name}, static_cast<std::uint64_t>(name));
  OverlayCache cache(*server.model, 2);
  EXPECT_EQ(*cache.of(server.adapters->base()), nullptr);
  const auto of = [&](const char* name) { return *cache.of(server.adapters->find(name)); };
  const OverlayPtr a = of("a"), b = of("b");
  EXPECT_NE(all_scales(*a), all_scales(*b));
  EXPECT_EQ(of("a"), a);
  of("c");  // b was used longest ago
  EXPECT_EQ(cache.size(), 2u);
  EXPECT_EQ(of("a"), a);
  const OverlayPtr again = of("b");
  EXPECT_NE(again, b);
  EXPECT_EQ(all_scales(*again), all_scales(*b));
}

TEST(OverlayCache, ForgetsWhatWasUnloaded) {
  ToyServer server;
  server.load_adapter("a", 1);
  OverlayCache cache(*server.model, 4);
  const std::weak_ptr<const Overlay> first = *cache.of(server.adapters->find("a"));
  EXPECT_FALSE(first.expired());
  server.adapters->unload("a");
  server.load_adapter("a", 2);  // the same name, another adapter
  const OverlayPtr second = *cache.of(server.adapters->find("a"));
  EXPECT_TRUE(first.expired());
  EXPECT_EQ(cache.size(), 1u);
  EXPECT_NE(second, nullptr);
}

TEST(OverlayCache, WhatWasUnloadedGoesWithoutAnotherRequest) {
  ToyServer server;
  server.load_adapter("a", 1);
  server.load_adapter("b", 2);
  OverlayCache cache(*server.model, 4);
  const std::weak_ptr<const Overlay> unloaded = *cache.of(server.adapters->find("a"));
  const std::weak_ptr<const Overlay> kept = *cache.of(server.adapters->find("b"));
  server.adapters->unload("a");
  cache.drop_unloaded();
  EXPECT_TRUE(unloaded.expired());
  EXPECT_FALSE(kept.expired());
}

// More adapters than can be ready: every answer is the one of the adapter that was asked for.
TEST(OverlayCache, AnswersDoNotDependOnWhatIsReady) {
  EngineOptions one;
  one.parallel = 1;
  ToyServer small(one), large;
  for (ToyServer* server : {&small, &large})
    for (const char name : {'a', 'b', 'c'})
      server->load_adapter({name}, static_cast<std::uint64_t>(name));
  for (int round = 0; round < 2; ++round)
    for (const char name : {'a', 'b', 'c'}) {
      const Json body{{"model", std::string(1, name)},
                      {"prompt", "some text"},
                      {"max_tokens", 12},
                      {"temperature", 0},
                      {"logprobs", 0},
                      {"ignore_eos", true}};
      const Json want = large.answer("/v1/completions", body);
      const Json got = small.answer("/v1/completions", body);
      EXPECT_EQ(got["choices"], want["choices"]) << name;
    }
}

}  // namespace
}  // namespace trimpot::serve
