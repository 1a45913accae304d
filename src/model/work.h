// What passes over a model cost at least: bytes to read and multiply-adds by number type, counted
// from the shapes. Compared with what the machine can do at most, it says how far a time is from
// the limit.
#pragma once

#include <cstdint>

#include "kernels/ops.h"
#include "model/backward.h"
#include "model/weights.h"

namespace trimpot {

struct Work {
  double bytes = 0;  // of weights, and of keys and values that are read again
  double int8_macs = 0, rounded_macs = 0, f32_macs = 0;
  Work& operator+=(const Work& other) {
    bytes += other.bytes;
    int8_macs += other.int8_macs;
    rounded_macs += other.rounded_macs;
    f32_macs += other.f32_macs;
    return *this;
  }
};

// One token after `position` others in each of some sequences, with the logits of the next ones.
Work decode_work(const Compute& compute, const Model& model, std::int64_t position,
                 std::int64_t sequences, CacheType cache = CacheType::kFloat);
// `tokens` at once from an empty context, with the logits after the last one.
Work prefill_work(const Compute& compute, const Model& model, std::int64_t tokens);
// A forward pass over one sequence with the loss of every token; with `sink`, its backward, which
// computes each layer again but for down_proj. The optimizer is left out: no multiply-adds to speak
// of.
Work tuning_work(const Compute& compute, const Model& model, std::int64_t tokens,
                 const GradientSink* sink);

}  // namespace trimpot
