#include "serve/overlay_cache.h"

#include <algorithm>
#include <new>

namespace trimpot::serve {

Result<OverlayPtr> OverlayCache::of(const ServedPtr& served) {
  if (!served->adapter) return OverlayPtr();
  std::erase_if(ready_, [](const Ready& ready) { return ready.served.expired(); });
  const auto found = std::find_if(ready_.begin(), ready_.end(), [&](const Ready& ready) {
    return ready.served.lock() == served;
  });
  if (found != ready_.end()) {
    std::rotate(found, found + 1, ready_.end());
    return ready_.back().overlay;
  }
  try {
    TRIMPOT_TRY(Overlay made, make_overlay({&*served->adapter, 1}, model_));
    if (ready_.size() >= most_ && !ready_.empty()) ready_.erase(ready_.begin());
    ready_.push_back({served, std::make_shared<const Overlay>(std::move(made))});
    return ready_.back().overlay;
  } catch (const std::bad_alloc&) {
    return fail("no memory for adapter {}", served->name);
  }
}

}  // namespace trimpot::serve
