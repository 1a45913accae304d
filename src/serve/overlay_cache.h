// What requests compute with under their adapters. An adapter that nobody uses takes what its file
// holds; made ready for the kernels it can be twice that (offsets move with the scales). So only
// those used last stay ready, as many as can run at once; any other is made again in milliseconds.
#pragma once

#include <memory>
#include <vector>

#include "serve/adapters.h"

namespace trimpot::serve {

using OverlayPtr = std::shared_ptr<const Overlay>;

// For one thread. `model` must outlive it.
class OverlayCache {
 public:
  OverlayCache(const Model& model, std::size_t most) : model_(model), most_(most) {}

  // Null for the base. Errors: there is no memory for it.
  Result<OverlayPtr> of(const ServedPtr& served);
  std::size_t size() const { return ready_.size(); }

 private:
  struct Ready {
    std::weak_ptr<const Served> served;
    OverlayPtr overlay;
  };
  const Model& model_;
  const std::size_t most_;
  std::vector<Ready> ready_;  // the one used last at the end
};

}  // namespace trimpot::serve
