#include "eval/likelihood.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/sampler.h"

namespace trimpot {
namespace {

constexpr std::int64_t kRows = 512;              // of a step, about: more are not faster per row
constexpr std::int64_t kLogitRows = 48;          // 9 MB of logits for 49,152 tokens
constexpr std::size_t kCacheBytes = 256u << 20;  // keys and values of all sequences
constexpr std::size_t kPrefixes = 12, kTails = 48;

// Row `row` of a run predicts `label`.
struct Wanted {
  std::int64_t row;
  TokenId label;
  Likelihood* to;
};

// A sequence that is continued; in `wanted`, rows do not decrease.
struct Run {
  Sequence* sequence;
  std::span<const TokenId> tokens;
  std::vector<Wanted> wanted;
};

class Scorer {
 public:
  Scorer(Compute& compute, const Model& model)
      : compute_(compute), model_(model), decoder_(compute, model) {
    logits_.reserve(static_cast<std::size_t>(kLogitRows * model.config.vocabulary));
  }

  // All runs, each of another sequence, in as few steps as they need.
  Status run(std::span<const Run> runs) {
    std::size_t next = 0;
    std::int64_t offset = 0;  // tokens of runs[next] that are done
    while (next < runs.size()) {
      std::vector<Turn> turns;
      std::vector<Wanted> last, inner;  // rows of the step's logits; rows of the step
      std::int64_t rows = 0, last_rows = 0;
      // Twice as many before a run is cut in two: its rest would make a small step of its own.
      while (next < runs.size() && rows < kRows && last_rows < kLogitRows) {
        const Run& run = runs[next];
        const auto size = static_cast<std::int64_t>(run.tokens.size());
        const std::int64_t take = std::min(size - offset, 2 * kRows - rows);
        Turn turn{run.sequence, run.tokens.subspan(offset, take), false};
        const std::size_t inner_before = inner.size();
        turn.wants_logits = add_wanted(run, offset, take, rows, last_rows, last, inner);
        turn.scored = inner.size() > inner_before;
        last_rows += turn.wants_logits;
        turns.push_back(turn);
        rows += take;
        offset += take;
        if (offset < size) break;
        offset = 0;
        ++next;
      }
      TRIMPOT_TRY_VOID(decoder_.step(turns, logits_.data()));
      take_from(last, 0, last_rows);
      score_rows(inner);
    }
    return {};
  }

 private:
  // Where only the last row of a turn is wanted, the step itself gives its logits, those of all
  // turns in one product. Returns whether that is so.
  static bool add_wanted(const Run& run, std::int64_t offset, std::int64_t take,
                         std::int64_t first_row, std::int64_t last_rows, std::vector<Wanted>& last,
                         std::vector<Wanted>& inner) {
    const auto inside = [&](const Wanted& wanted) {
      return wanted.row >= offset && wanted.row < offset + take;
    };
    const auto first = std::find_if(run.wanted.begin(), run.wanted.end(), inside);
    if (first == run.wanted.end()) return false;
    const bool only_last = first->row == offset + take - 1;
    for (auto wanted = first; wanted != run.wanted.end() && inside(*wanted); ++wanted) {
      if (only_last)
        last.push_back({last_rows, wanted->label, wanted->to});
      else
        inner.push_back({first_row + wanted->row - offset, wanted->label, wanted->to});
    }
    return only_last;
  }

  void score_rows(std::span<const Wanted> wanted) {
    while (!wanted.empty()) {
      // Rows that follow each other, up to a buffer full.
      std::size_t count = 1;
      const std::int64_t first = wanted[0].row;
      while (count < wanted.size() && wanted[count].row - wanted[count - 1].row <= 1 &&
             wanted[count].row < first + kLogitRows)
        ++count;
      const std::int64_t rows = wanted[count - 1].row + 1 - first;
      decoder_.logits_of(first, rows, logits_.data());
      take_from(wanted.first(count), first, rows);
      wanted = wanted.subspan(count);
    }
  }

  // From logits_, whose first row is `first`.
  void take_from(std::span<const Wanted> wanted, std::int64_t first, std::int64_t rows) {
    const std::int64_t vocabulary = model_.config.vocabulary;
    log_sums_.resize(static_cast<std::size_t>(rows));
    compute_.team.for_each(rows, 1, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i)
        log_sums_[static_cast<std::size_t>(i)] =
            compute_.kernels.log_sum_exp(logits_.data() + i * vocabulary, vocabulary);
    });
    for (const Wanted& w : wanted) {
      const std::int64_t row = w.row - first;
      const std::span<const float> logits(logits_.data() + row * vocabulary,
                                          static_cast<std::size_t>(vocabulary));
      w.to->log_probs.push_back(static_cast<double>(logits[static_cast<std::size_t>(w.label)]) -
                                static_cast<double>(log_sums_[static_cast<std::size_t>(row)]));
      // Few endings are greedy beyond their first token, so this is rarely asked.
      w.to->greedy = w.to->greedy && greedy(logits) == w.label;
    }
  }

  Compute& compute_;
  const Model& model_;
  Decoder decoder_;
  AlignedBuffer<float> logits_;
  std::vector<float> log_sums_;
};

// A group's common beginning: tokens that all requests have, and at least one is left to each.
std::int64_t shared_length(const LikelihoodGroup& group) {
  std::int64_t most = INT64_MAX;
  for (const LikelihoodRequest& request : group)
    most = std::min(most, static_cast<std::int64_t>(request.tokens.size()) - 1);
  return common_prefix(group, most);
}

class GroupScorer {
 public:
  GroupScorer(Compute& compute, const Model& model, std::span<const LikelihoodGroup> groups,
              std::int64_t longest)
      : groups_(groups), scorer_(compute, model), results_(groups.size()) {
    for (std::size_t g = 0; g < groups.size(); ++g) {
      shared_.push_back(shared_length(groups[g]));
      results_[g].resize(groups[g].size());
    }
    const ModelConfig& config = model.config;
    const std::size_t bytes = model.layers.size() *
                              static_cast<std::size_t>(config.attention.kv_width() * longest) * 2 *
                              (compute.precision == Precision::kF32 ? 4 : 2);
    const std::size_t fit = std::max<std::size_t>(4, kCacheBytes / std::max<std::size_t>(1, bytes));
    std::size_t requests = 0;
    for (const LikelihoodGroup& group : groups) requests += group.size();
    prefixes_.resize(std::min({kPrefixes, fit / 4, groups.size()}));
    tails_.resize(std::min({kTails, fit - fit / 4, requests}));
    root_length_ = groups.size() > 1 ? root_length() : 0;
    for (auto* pool : {&prefixes_, &tails_})
      for (auto& sequence : *pool) sequence = std::make_unique<Sequence>(compute, model, longest);
    if (root_length_ > 0) root_ = std::make_unique<Sequence>(compute, model, root_length_);
  }

  Status run(const std::function<void(std::int64_t done)>& progress) {
    if (root_) {
      const Run root{root_.get(), tokens_of(0, 0).first(root_length_), {}};
      TRIMPOT_TRY_VOID(scorer_.run({&root, 1}));
    }
    for (std::size_t group = 0; group < groups_.size();) {
      const std::size_t begin = group;
      std::int64_t rows = 0;
      while (group < groups_.size() && group - begin < prefixes_.size() && rows < kRows)
        rows += shared_[group++] - root_length_;
      TRIMPOT_TRY_VOID(run_prefixes(begin, group));
      TRIMPOT_TRY_VOID(run_tails(begin, group));
      if (progress) progress(static_cast<std::int64_t>(group));
    }
    return {};
  }

  std::vector<std::vector<Likelihood>>& results() { return results_; }

 private:
  std::span<const TokenId> tokens_of(std::size_t group, std::size_t request) const {
    return groups_[group][request].tokens;
  }

  // What all groups begin with and none scores; 0 where it is too short to be worth a copy.
  std::int64_t root_length() const {
    std::int64_t length = shared_[0];
    const std::span<const TokenId> first = tokens_of(0, 0);
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      length = std::min(length, shared_[g]);
      for (const LikelihoodRequest& request : groups_[g])
        length = std::min(length, request.scored - 1);
      const std::span<const TokenId> tokens = tokens_of(g, 0);
      std::int64_t same = 0;
      while (same < length &&
             tokens[static_cast<std::size_t>(same)] == first[static_cast<std::size_t>(same)])
        ++same;
      length = same;
    }
    return length >= 8 ? length : 0;
  }

  Status run_prefixes(std::size_t begin, std::size_t end) {
    std::vector<Run> runs;
    for (std::size_t g = begin; g < end; ++g) {
      Sequence& sequence = *prefixes_[g - begin];
      sequence.truncate(0);
      if (root_) sequence.copy_prefix(*root_, root_length_);
      if (shared_[g] == root_length_) continue;
      Run run{&sequence, tokens_of(g, 0).subspan(root_length_, shared_[g] - root_length_), {}};
      // Row t predicts token t + 1.
      for (std::int64_t t = root_length_; t < shared_[g]; ++t)
        for (std::size_t i = 0; i < groups_[g].size(); ++i) {
          const LikelihoodRequest& request = groups_[g][i];
          if (t + 1 >= request.scored)
            run.wanted.push_back({t - root_length_, request.tokens[static_cast<std::size_t>(t) + 1],
                                  &results_[g][i]});
        }
      runs.push_back(std::move(run));
    }
    return scorer_.run(runs);
  }

  Status run_tails(std::size_t begin, std::size_t end) {
    std::vector<Run> runs;
    for (std::size_t g = begin; g < end; ++g)
      for (std::size_t i = 0; i < groups_[g].size(); ++i) {
        const LikelihoodRequest& request = groups_[g][i];
        const auto size = static_cast<std::int64_t>(request.tokens.size());
        if (shared_[g] == size - 1) continue;  // the prefix's last row predicted all there is
        Sequence& sequence = *tails_[runs.size()];
        sequence.truncate(0);
        sequence.copy_prefix(*prefixes_[g - begin], shared_[g]);
        Run run{&sequence, tokens_of(g, i).subspan(shared_[g], size - 1 - shared_[g]), {}};
        for (std::int64_t t = std::max(shared_[g], request.scored - 1); t + 1 < size; ++t)
          run.wanted.push_back(
              {t - shared_[g], request.tokens[static_cast<std::size_t>(t) + 1], &results_[g][i]});
        runs.push_back(std::move(run));
        if (runs.size() < tails_.size()) continue;
        TRIMPOT_TRY_VOID(scorer_.run(runs));
        runs.clear();
      }
    return scorer_.run(runs);
  }

  std::span<const LikelihoodGroup> groups_;
  Scorer scorer_;
  std::vector<std::vector<Likelihood>> results_;
  std::vector<std::int64_t> shared_;  // tokens, by group
  std::int64_t root_length_ = 0;
  std::unique_ptr<Sequence> root_;
  std::vector<std::unique_ptr<Sequence>> prefixes_, tails_;
};

}  // namespace

double Likelihood::sum() const { return std::accumulate(log_probs.begin(), log_probs.end(), 0.0); }

std::int64_t common_prefix(std::span<const LikelihoodRequest> requests, std::int64_t most) {
  if (requests.empty()) return 0;
  const std::vector<TokenId>& first = requests[0].tokens;
  most = std::min(most, static_cast<std::int64_t>(first.size()));
  for (const LikelihoodRequest& request : requests) {
    const auto same = std::mismatch(first.begin(), first.begin() + most, request.tokens.begin(),
                                    request.tokens.end());
    most = same.first - first.begin();
  }
  return most;
}

Result<std::vector<std::vector<Likelihood>>> log_likelihoods(
    Compute& compute, const Model& model, std::span<const LikelihoodGroup> groups,
    const std::function<void(std::int64_t done)>& progress) {
  std::int64_t longest = 1;
  for (const LikelihoodGroup& group : groups) {
    if (group.empty()) return fail("a group without requests");
    for (const LikelihoodRequest& request : group) {
      const auto size = static_cast<std::int64_t>(request.tokens.size());
      if (request.scored < 1 || request.scored >= size)
        return fail(
            "a request of {} tokens that are scored from {} on: at least one must come "
            "before and one after",
            size, request.scored);
      for (const TokenId token : request.tokens)
        if (token < 0 || token >= model.config.vocabulary)
          return fail("token {} is not in the vocabulary of {}", token, model.config.vocabulary);
      longest = std::max(longest, size - 1);
    }
  }
  GroupScorer scorer(compute, model, groups, longest);
  TRIMPOT_TRY_VOID(scorer.run(progress));
  for (const auto& group : scorer.results())
    for (const Likelihood& result : group)
      if (!std::isfinite(result.sum()))
        return fail("the model's predictions are not finite numbers");
  return std::move(scorer.results());
}

}  // namespace trimpot
