// What requests compute with under their adapters. An adapter that nobody uses takes what its file
// holds; made ready for the kernels it can be twice that (offsets move with the scales). So only
// those used last stay ready, as many as can run at once; any other is made again in milliseconds.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "serve/served.h"

namespace trimpot::serve {

using OverlayPtr = std::shared_ptr<const Overlay>;

// May be used by many threads at once. `model` must outlive it.
class OverlayCache {
 public:
  OverlayCache(const Model& model, std::size_t most) : model_(model), most_(most) {}

  // Null for the base. Errors: what make_overlay() says; there is no memory for it. `team`: whose
  // threads help the caller's, if it is theirs to call.
  Result<OverlayPtr> of(const ServedPtr& served, ThreadTeam* team = nullptr);
  // Gives up those of adapters that are gone, which otherwise waits for the next of().
  void drop_unloaded();
  std::size_t size() const;

 private:
  OverlayPtr find(const ServedPtr& served);
  struct Ready {
    std::weak_ptr<const Served> served;
    OverlayPtr overlay;
  };
  const Model& model_;
  const std::size_t most_;
  mutable std::mutex mutex_;
  std::vector<Ready> ready_;  // the one used last at the end
};

}  // namespace trimpot::serve
