#include "serve/overlay_cache.h"

#include <algorithm>
#include <new>

namespace trimpot::serve {

// Null if it is not ready; otherwise the one used last from now on.
OverlayPtr OverlayCache::find(const ServedPtr& served) {
  std::erase_if(ready_, [](const Ready& ready) { return ready.served.expired(); });
  const auto found = std::find_if(ready_.begin(), ready_.end(), [&](const Ready& ready) {
    return ready.served.lock() == served;
  });
  if (found == ready_.end()) return nullptr;
  std::rotate(found, found + 1, ready_.end());
  return ready_.back().overlay;
}

Result<OverlayPtr> OverlayCache::of(const ServedPtr& served, ThreadTeam* team) {
  if (!served->adapter) return OverlayPtr();
  {
    const std::lock_guard lock(mutex_);
    if (OverlayPtr overlay = find(served)) return overlay;
  }
  // Made without the lock: nobody waits for somebody else's adapter.
  try {
    TRIMPOT_TRY(Overlay made, make_overlay({&*served->adapter, 1}, model_, team));
    const std::lock_guard lock(mutex_);
    if (OverlayPtr overlay = find(served)) return overlay;
    if (ready_.size() >= most_ && !ready_.empty()) ready_.erase(ready_.begin());
    ready_.push_back({served, std::make_shared<const Overlay>(std::move(made))});
    return ready_.back().overlay;
  } catch (const std::bad_alloc&) {
    return fail("no memory for adapter {}", served->name);
  }
}

void OverlayCache::drop_unloaded() {
  const std::lock_guard lock(mutex_);
  std::erase_if(ready_, [](const Ready& ready) { return ready.served.expired(); });
}

std::size_t OverlayCache::size() const {
  const std::lock_guard lock(mutex_);
  return ready_.size();
}

}  // namespace trimpot::serve
