// What a tuning method hands out: named parameters with f32 master values, gradients and moments,
// and a way to commit them, rounded to the storage type, into the stored weights. The optimizer,
// checkpoints and adapters work on these and know no method.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/backward.h"
#include "model/weights.h"
#include "optim/adamw.h"

namespace trimpot {

struct Parameter {
  std::string name;    // "<gguf tensor name>.scale"
  std::size_t linear;  // Model::linear index
  std::size_t begin;   // first element in the arrays of Parameters
  std::size_t count;
  double learning_rate_factor;  // on the run's learning rate: parameters have different units
};

// All parameters of a run in four flat arrays.
struct Parameters {
  std::vector<Parameter> list;
  AlignedBuffer<float> values, gradient, first_moment, second_moment;

  std::size_t size() const { return values.size(); }
  void allocate(std::size_t count) {
    values.resize(count);
    gradient.resize(count);
    first_moment.resize(count);
    second_moment.resize(count);
  }
};

// One tensor of an adapter, row after row, in the original order of channels.
struct AdapterTensor {
  std::string name;   // "<gguf tensor name>.scale", ".zero", ".weak", ".lora_a", ...
  std::string dtype;  // "F16", "F32" or "I32"
  std::vector<std::uint64_t> shape;
  std::vector<std::byte> bytes;

  template <typename T>
  static AdapterTensor make(std::string name, std::string dtype, std::vector<std::uint64_t> shape,
                            std::span<const T> values) {
    const auto bytes = std::as_bytes(values);
    return {std::move(name), std::move(dtype), std::move(shape), {bytes.begin(), bytes.end()}};
  }
};

class TuningMethod {
 public:
  virtual ~TuningMethod() = default;
  virtual Parameters& parameters() = 0;
  // How many numbers the user's file gets to learn (padding not counted).
  virtual std::size_t trainable() const = 0;
  virtual const GradientSink& sink() = 0;
  // Before each forward and backward pass of a step, with a number that no other pass has: where
  // random numbers (dropout) come from.
  virtual void begin_pass(std::uint64_t) {}
  // Writes the rounded parameters into the model. Errors: a value that is no longer finite, naming
  // tensor, row and group.
  virtual Status commit(ThreadTeam& team) = 0;
  // The committed values, for an adapter file. Errors: a method whose result is a whole model.
  virtual Result<std::vector<AdapterTensor>> adapter_tensors() const = 0;
};

}  // namespace trimpot
