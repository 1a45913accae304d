// The scheduler: every request gets what it would get alone, and gets an end whatever happens.
#include "serve/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "serve/toy_server.h"

namespace trimpot::serve {
namespace {

using namespace std::chrono_literals;

std::vector<TokenId> random_prompt(RandomStream& random, std::int64_t most) {
  std::vector<TokenId> prompt;
  for (std::int64_t n = 1 + random.below(most); n > 0; --n)
    prompt.push_back(kToyFirstByte + static_cast<TokenId>(random.below(256)));
  return prompt;
}

std::shared_ptr<Ticket> make_ticket(const ServedPtr& served, std::vector<Job> jobs,
                                    bool stream = false) {
  auto ticket = std::make_shared<Ticket>();
  ticket->served = served;
  ticket->jobs = std::move(jobs);
  ticket->stream = stream;
  return ticket;
}

Job job_of(std::vector<TokenId> prompt, std::int64_t max_tokens, float temperature = 0,
           std::uint64_t seed = 0) {
  Job job;
  job.prompt = std::move(prompt);
  job.max_tokens = max_tokens;
  job.sampler.temperature = temperature;
  job.sampler.seed = seed;
  return job;
}

std::vector<Delta> ask(Engine& engine, const ServedPtr& served, std::vector<Job> jobs) {
  auto ticket = make_ticket(served, std::move(jobs));
  EXPECT_EQ(engine.submit(ticket), Engine::Answer::kAccepted);
  return collect(*ticket);
}

// What a session of its own makes of a prompt, with the adapter applied to the model itself.
struct Reference {
  std::string text;
  std::vector<double> prompt_logprobs, logprobs;  // of tokens 1 .. of the prompt; of the answer
};

Reference alone(const ToyServer& toy, Model& model, const Job& job) {
  Compute compute(*usable_kernels().front(), Precision::kDefault, 1);
  Session session(compute, model, kToyContext);
  const auto vocabulary = static_cast<std::size_t>(model.config.vocabulary);
  Reference reference;
  std::vector<float> last(vocabulary);
  const auto logprob = [&](const float* logits, TokenId token) {
    return double{logits[token]} -
           double{compute.kernels.log_sum_exp(logits, model.config.vocabulary)};
  };
  EXPECT_TRUE(session.append_all(job.prompt, 0, [&](std::int64_t row, const float* logits) {
    const auto next = static_cast<std::size_t>(row) + 1;
    if (next < job.prompt.size())
      reference.prompt_logprobs.push_back(logprob(logits, job.prompt[next]));
    else
      last.assign(logits, logits + vocabulary);
  }));
  Sampler sampler(job.sampler);
  for (std::int64_t i = 0; i < job.max_tokens; ++i) {
    const TokenId token = sampler.sample(last);
    reference.logprobs.push_back(logprob(last.data(), token));
    if (toy.tokenizer->is_end_of_generation(token)) break;
    if (!toy.tokenizer->is_control(token)) reference.text += toy.tokenizer->token_bytes(token);
    if (session.length() == kToyContext) break;
    EXPECT_TRUE(session.append({&token, 1}, last.data()));
  }
  reference.text = valid_utf8(reference.text);
  return reference;
}

TEST(Engine, EveryAnswerIsThatOfTheRequestAlone) {
  EngineOptions options;
  options.parallel = 4;
  options.step_rows = 8;  // prompts are read in many pieces beside those that answer
  options.cache_bytes = 300 << 10;
  ToyServer toy(options);
  toy.load_adapter("one", 1);
  toy.load_adapter("two", 2);
  std::vector<std::unique_ptr<Model>> models;  // with the adapters put into them
  ThreadTeam team(1);
  for (const ServedPtr& served : toy.adapters->list()) {
    models.push_back(std::move(*load_model(*toy.file, team)));
    if (served->version == 0) continue;
    ASSERT_TRUE(apply_adapter(served->path, *toy.file, *models.back()));
  }
  RandomStream random(5);
  const std::vector<TokenId> shared = random_prompt(random, 40);
  std::vector<std::shared_ptr<Ticket>> tickets;
  std::vector<std::size_t> which;
  for (int i = 0; i < 60; ++i) {
    std::vector<TokenId> prompt = i % 2 == 0 ? shared : std::vector<TokenId>{};
    for (const TokenId token : random_prompt(random, 30)) prompt.push_back(token);
    Job job = job_of(std::move(prompt), 1 + random.below(20), i % 3 == 0 ? 0.0f : 0.9f,
                     static_cast<std::uint64_t>(i));
    job.top = i % 4 == 0 ? 2 : -1;
    job.score_prompt = i % 8 == 0;
    which.push_back(static_cast<std::size_t>(random.below(3)));
    tickets.push_back(make_ticket(toy.adapters->list()[which.back()], {job}, i % 5 == 0));
    ASSERT_EQ(toy.engine->submit(tickets.back()), Engine::Answer::kAccepted);
    if (i % 7 == 0) std::this_thread::sleep_for(2ms);
  }
  std::int64_t cached = 0;
  for (std::size_t i = 0; i < tickets.size(); ++i) {
    const Delta got = collect(*tickets[i])[0];
    const Job& job = tickets[i]->jobs[0];
    const Reference want = alone(toy, *models[which[i]], job);
    EXPECT_EQ(got.text, want.text) << "request " << i;
    cached += got.cached_tokens;
    if (job.top < 0) continue;
    ASSERT_EQ(got.scores.size(), want.logprobs.size());
    for (std::size_t t = 0; t < want.logprobs.size(); ++t)
      EXPECT_EQ(got.scores[t].logprob, want.logprobs[t]);
    if (!job.score_prompt) continue;
    ASSERT_EQ(got.prompt_scores.size(), job.prompt.size());
    EXPECT_TRUE(std::isnan(got.prompt_scores[0].logprob));
    for (std::size_t t = 1; t < job.prompt.size(); ++t) {
      EXPECT_EQ(got.prompt_scores[t].token, job.prompt[t]);
      EXPECT_EQ(got.prompt_scores[t].logprob, want.prompt_logprobs[t - 1]);
    }
  }
  EXPECT_GT(cached, 0);
  EXPECT_TRUE(toy.engine->idle());
}

TEST(Engine, ChoicesShareOneReadingOfThePrompt) {
  ToyServer toy;
  RandomStream random(6);
  const std::vector<TokenId> prompt = random_prompt(random, 50);
  std::vector<Job> jobs;
  for (int choice = 0; choice < 12; ++choice) {
    jobs.push_back(job_of(prompt, 10, 1.0f, static_cast<std::uint64_t>(choice)));
    if (choice > 0) jobs.back().leader = 0;
  }
  const std::vector<Delta> together = ask(*toy.engine, toy.adapters->base(), jobs);
  for (std::size_t choice = 0; choice < jobs.size(); ++choice) {
    EXPECT_EQ(together[choice].cached_tokens,
              choice == 0 ? 0 : static_cast<std::int64_t>(prompt.size()) - 1);
    jobs[choice].leader = -1;
    EXPECT_EQ(ask(*toy.engine, toy.adapters->base(), {jobs[choice]})[0].text,
              together[choice].text);
  }
}

TEST(Engine, NumbersOfTokens) {
  ToyServer toy;
  RandomStream random(7);
  const ServedPtr& base = toy.adapters->base();
  Job none = job_of(random_prompt(random, 9), 0);
  Delta got = ask(*toy.engine, base, {none})[0];
  EXPECT_EQ(got.tokens, 0);
  EXPECT_EQ(got.text, "");
  EXPECT_EQ(got.finish, Finish::kLength);
  none.top = 1;
  none.score_prompt = true;
  got = ask(*toy.engine, base, {none})[0];
  EXPECT_EQ(got.prompt_scores.size(), none.prompt.size());
  EXPECT_EQ(got.scores.size(), 0u);

  Job one = none;
  one.max_tokens = 1;
  got = ask(*toy.engine, base, {one})[0];
  EXPECT_EQ(got.prompt_scores.size() + got.scores.size(), one.prompt.size() + 1);
  EXPECT_EQ(got.tokens, 1);

  // The toy may end at any token unless it is not to.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Job job = job_of({kToyFirstByte + 65}, 60, 1.0f, seed);
    job.ignore_end = true;
    EXPECT_EQ(ask(*toy.engine, base, {job})[0].tokens, 60);
  }

  // A prompt as long as the context leaves room for a token that is not read any more.
  std::vector<TokenId> full(kToyContext, kToyFirstByte + 65);
  got = ask(*toy.engine, base, {job_of(full, 100)})[0];
  EXPECT_EQ(got.tokens, 1);
}

TEST(Engine, StopsAreLookedForAcrossTokens) {
  ToyServer toy;
  RandomStream random(8);
  Job job;
  std::string text;
  while (text.size() < 12) {  // the toy may end early
    job = job_of(random_prompt(random, 20), 40, 1.0f, random.bits());
    text = ask(*toy.engine, toy.adapters->base(), {job})[0].text;
  }
  // The toy's tokens are bytes: this stop is made of several.
  job.stop = {text.substr(6, 4)};
  if (valid_utf8(job.stop[0]) == job.stop[0] && text.find("\xef\xbf\xbd") == std::string::npos) {
    const Delta got = ask(*toy.engine, toy.adapters->base(), {job})[0];
    EXPECT_EQ(got.text, text.substr(0, text.find(job.stop[0])));
    EXPECT_EQ(got.finish, Finish::kStop);
  }
}

TEST(Engine, CancelAndDeadline) {
  EngineOptions options;
  options.parallel = 1;
  ToyServer toy(options);
  RandomStream random(9);
  // The first one is at work, the second waits; both go when they are told to.
  std::vector<Job> many;
  for (int i = 0; i < 30; ++i) many.push_back(job_of(random_prompt(random, 80), 80));
  auto running = make_ticket(toy.adapters->base(), many);
  auto waiting = make_ticket(toy.adapters->base(), {job_of(random_prompt(random, 9), 5)});
  auto late = make_ticket(toy.adapters->base(), {job_of(random_prompt(random, 9), 5)});
  late->deadline = Clock::now();
  for (const auto& ticket : {running, waiting, late})
    ASSERT_EQ(toy.engine->submit(ticket), Engine::Answer::kAccepted);
  waiting->cancel();
  running->cancel();
  EXPECT_EQ(collect(*waiting)[0].finish, Finish::kCancelled);
  EXPECT_EQ(collect(*running)[29].finish, Finish::kCancelled);
  EXPECT_EQ(collect(*late)[0].finish, Finish::kTimeout);
  const Job job = job_of(random_prompt(random, 9), 5);
  EXPECT_EQ(ask(*toy.engine, toy.adapters->base(), {job})[0].text,
            alone(toy, *toy.model, job).text);
}

TEST(Engine, AFullQueueRefusesAWholeTicket) {
  EngineOptions options;
  options.parallel = 1;
  options.queue = 3;
  ToyServer toy(options);
  RandomStream random(10);
  const Job job = job_of(random_prompt(random, 9), 5);
  EXPECT_EQ(toy.engine->submit(make_ticket(toy.adapters->base(), {job, job, job, job})),
            Engine::Answer::kQueueFull);
  EXPECT_TRUE(toy.engine->idle());
  EXPECT_EQ(toy.adapters->base()->usage.waiting, 0);
  EXPECT_EQ(ask(*toy.engine, toy.adapters->base(), {job, job, job}).size(), 3u);
}

TEST(Engine, AnAdapterInUseCanBeUnloaded) {
  ToyServer toy;
  toy.load_adapter("one", 1);
  RandomStream random(11);
  const Job job = job_of(random_prompt(random, 30), 40, 1.0f, 1);
  const ServedPtr old = toy.adapters->find("one");
  const std::string want = ask(*toy.engine, old, {job})[0].text;
  auto ticket = make_ticket(old, {job, job, job});
  ASSERT_EQ(toy.engine->submit(ticket), Engine::Answer::kAccepted);
  EXPECT_TRUE(toy.adapters->unload("one"));
  EXPECT_FALSE(toy.adapters->unload("one"));
  EXPECT_EQ(toy.adapters->find("one"), nullptr);
  // Another one of the same name finds nothing of the old one's in the cache.
  toy.load_adapter("one", 2);
  const Delta other = ask(*toy.engine, toy.adapters->find("one"), {job})[0];
  EXPECT_EQ(other.cached_tokens, 0);
  EXPECT_NE(other.text, want);
  for (const Delta& delta : collect(*ticket)) EXPECT_EQ(delta.text, want);
}

TEST(Engine, GoingDownEndsEverything) {
  ToyServer toy;
  RandomStream random(12);
  std::vector<Job> jobs;
  for (int i = 0; i < 100; ++i) jobs.push_back(job_of(random_prompt(random, 80), 80));
  auto ticket = make_ticket(toy.adapters->base(), jobs);
  ASSERT_EQ(toy.engine->submit(ticket), Engine::Answer::kAccepted);
  toy.engine->drain();
  EXPECT_EQ(toy.engine->submit(make_ticket(toy.adapters->base(), {jobs[0]})),
            Engine::Answer::kStopping);
  toy.engine->stop();
  const std::vector<Delta> ends = collect(*ticket);
  EXPECT_EQ(ends.back().finish, Finish::kShutdown);
}

}  // namespace
}  // namespace trimpot::serve
