// Toy models in this program's own file format (model/stored.h), and the same function as a plain
// F32 file. Written from the format's description, apart from the library's own writer.
#pragma once

#include "support/toy_model.h"

namespace trimpot {

enum class OwnCentre { kZeros, kOffsets, kSymmetric };

struct OwnOptions {
  int bits = 4;
  std::int64_t group_size = 32;  // 0: one group per row
  OwnCentre centre = OwnCentre::kZeros;
  std::int64_t weak = 0;   // weak columns of every linear layer
  bool weak_last = false;  // they are the last channels; else anywhere
  // The residual and the feed-forward axes have an order of their own, in which the weak columns
  // are the last ones (those of o_proj stay where they are).
  bool reordered = false;
  bool embedding_in_original_order = false;  // of a reordered model
  int head_bits = 0;                         // of embedding and head; 0: ordinary tensors
};

// Two files of one function. Of one seed, files whose groups are whole rows have the same function
// whether they are reordered or not. The types in `options` count for embedding and head only.
struct OwnToy {
  ToyFile own, plain;
};
OwnToy own_toy(const ToyOptions& options, const OwnOptions& own);

}  // namespace trimpot
