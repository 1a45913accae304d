// Loss and gradients of a batch of sequences: forward with one checkpoint per layer, cross-entropy
// fused with the head, backward with each layer but the last recomputed. The default path also
// keeps some of what the layers computed (kept_activations.h); the f32 path computes all again, so
// that its gradients are those of the numbers it computed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/backward.h"
#include "model/kept_activations.h"

namespace trimpot {

// Sequences laid one after another, without padding; attention stays inside each.
struct TrainingBatch {
  std::vector<TokenId> tokens;
  std::vector<std::uint8_t> learned;  // learned[i]: token i is predicted from those before it
  std::vector<std::int64_t> lengths;  // of the sequences; they add up to tokens.size()
};

struct LossSum {
  double loss = 0;           // sum of -log p over learned tokens
  std::int64_t count = 0;    // learned tokens (the first token of a sequence is never one)
  std::int64_t correct = 0;  // learned tokens that were the most likely ones
};

// Learned tokens of a batch that have a token before them.
std::int64_t count_predictions(const TrainingBatch& batch);

// A full-precision model whose predictions are learned: the loss of a position becomes
//   (1 - weight) (-log p(label)) + weight KL(teacher || model)
// with the divergence over the whole vocabulary. It heals what quantization damaged without any
// label, and must have the same vocabulary.
struct Teacher {
  const Model* model = nullptr;
  double weight = 1.0;
};

class TrainingPass {
 public:
  TrainingPass(Compute& compute, const Model& model, Teacher teacher = {},
               std::size_t learned_values = 0)
      : compute_(compute), model_(model), teacher_(teacher), learned_values_(learned_values) {}

  // Adds up the loss; with a sink also the gradients of weight * (sum of losses).
  // Errors: a token outside the vocabulary, a loss that is not finite.
  Result<LossSum> run(const TrainingBatch& batch, float weight, const GradientSink* sink);

 private:
  void prepare(const TrainingBatch& batch, const GradientSink* sink);
  // The teacher's hidden states after its last layer, in teacher_x_.
  void run_teacher(const TrainingBatch& batch);
  // Loss and gradient of one row of logits; `taught` are the teacher's, overwritten (null: none).
  void learn_row(TokenId label, float weight, bool gradients, float* logits, float* taught,
                 int member, double& loss, std::uint8_t& correct);
  // Loss over learned rows; leaves d loss / d x (last layer's output) in dx_ when `gradients`.
  void head(const TrainingBatch& batch, float weight, bool gradients, const float* x, LossSum& sum);
  // layer_forward() once more, without the layer's output.
  void recompute(std::size_t layer, const GradientSink& sink);
  void backward(const GradientSink& sink);
  // The input of a layer. Two buffers in turns where no backward follows or kept_ has the inputs:
  // then those of the last layer and its output are there.
  float* checkpoint(std::size_t layer) {
    const auto place = static_cast<std::int64_t>(checkpoints_in_turns_ ? layer % 2 : layer);
    return checkpoints_.data() + place * rows_ * model_.config.hidden;
  }

  Compute& compute_;
  const Model& model_;
  Teacher teacher_;
  const std::size_t learned_values_;
  std::int64_t rows_ = 0;
  std::vector<KeyValues> caches_;  // one per sequence, reused by all layers
  std::vector<std::size_t> cache_of_;
  Batch rows_of_;  // tokens and segments
  RopeTable rope_;
  LayerActivations activations_;
  AlignedBuffer<float> checkpoints_;  // [layers + 1 or 2, rows, hidden]
  bool checkpoints_in_turns_ = false;
  bool keeps_results_ = false;
  KeptActivations kept_;         // of all layers but the last
  AlignedBuffer<float> dx_;      // [rows, hidden]
  AlignedBuffer<float> logits_;  // then a layer's gradients
  AlignedBuffer<float> labelled_x_, d_labelled_x_, d_normed_;
  std::vector<std::int64_t> labelled_rows_;
  std::vector<double> row_loss_;
  std::vector<std::uint8_t> row_correct_;
  Head head_;
  LayerActivations teacher_activations_;
  RopeTable teacher_rope_;
  std::vector<KeyValues> teacher_caches_;
  AlignedBuffer<float> teacher_x_, teacher_rows_, teacher_logits_;
  Head teacher_head_;
};

}  // namespace trimpot
