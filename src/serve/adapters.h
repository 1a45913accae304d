// The names that requests may ask for: the base and the adapters that are loaded beside it.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "serve/overlay_cache.h"

namespace trimpot::serve {

// May be used by many threads at once.
class Adapters {
 public:
  // `base`: the model's file and fingerprint. Adapters that are loaded are put into `overlays`.
  // `model` and `overlays` must outlive this.
  Adapters(std::string base_name, AdapterBase base, const Model& model, OverlayCache& overlays);

  // The base for "" and its own name; null if there is no such name.
  ServedPtr find(const std::string& name) const;
  // The adapter with this version, the base for 0; null if there is none.
  ServedPtr by_number(std::uint64_t version) const;
  // Errors: a name that is empty, too long, not printable or taken; what read_adapter() and
  // make_overlay() say.
  Result<ServedPtr> load(const std::string& name, const std::string& path);
  // Whether there was one.
  bool unload(const std::string& name);
  // The base first, then by name.
  std::vector<ServedPtr> list() const;
  const ServedPtr& base() const { return served_base_; }

 private:
  AdapterBase base_;
  const Model& model_;
  OverlayCache& overlays_;
  ServedPtr served_base_;
  mutable std::mutex mutex_;
  std::map<std::string, ServedPtr> adapters_;
  std::uint64_t next_version_ = 1;
};

}  // namespace trimpot::serve
