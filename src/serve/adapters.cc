#include "serve/adapters.h"

#include <malloc.h>

#include <algorithm>
#include <ctime>

#include "io/printable.h"

namespace trimpot::serve {
namespace {

constexpr std::size_t kMostAdapters = 4096;
constexpr std::size_t kLongestName = 128;

Status check_name(const std::string& name) {
  const auto plain = [](char c) { return c > ' ' && c <= '~' && c != '"' && c != '\\'; };
  if (name.empty() || name.size() > kLongestName || !std::all_of(name.begin(), name.end(), plain))
    return fail(
        "an adapter's name has 1 to {} printable ASCII characters without spaces, quotes and "
        "backslashes",
        kLongestName);
  return {};
}

}  // namespace

Adapters::Adapters(std::string base_name, AdapterBase base, const Model& model,
                   OverlayCache& overlays)
    : base_(std::move(base)), model_(model), overlays_(overlays) {
  auto served = std::make_shared<Served>();
  served->name = std::move(base_name);
  served->path = base_.path;
  served->created = std::time(nullptr);
  served_base_ = std::move(served);
}

ServedPtr Adapters::find(const std::string& name) const {
  if (name.empty() || name == served_base_->name) return served_base_;
  const std::lock_guard lock(mutex_);
  const auto found = adapters_.find(name);
  return found == adapters_.end() ? nullptr : found->second;
}

ServedPtr Adapters::by_number(std::uint64_t version) const {
  if (version == 0) return served_base_;
  const std::lock_guard lock(mutex_);
  for (const auto& [name, served] : adapters_)
    if (served->version == version) return served;
  return nullptr;
}

Result<ServedPtr> Adapters::load(const std::string& name, const std::string& path) {
  TRIMPOT_TRY_VOID(check_name(name));
  if (path.find('\0') != std::string::npos) return fail("the path has a byte of zero");
  const auto taken = [&] { return name == served_base_->name || adapters_.contains(name); };
  const auto check = [&]() -> Status {
    if (taken()) return fail("\"{}\" is loaded already; unload it first", printable(name));
    if (adapters_.size() >= kMostAdapters)
      return fail("{} adapters are loaded, as many as there can be", adapters_.size());
    return {};
  };
  {
    const std::lock_guard lock(mutex_);
    TRIMPOT_TRY_VOID(check());
  }
  auto served = std::make_shared<Served>();
  served->name = name;
  served->path = path;
  served->created = std::time(nullptr);
  TRIMPOT_TRY(served->adapter, read_adapter(path, base_, model_));
  // What is wrong is told now, not to somebody's request; and the first one need not wait.
  if (const auto overlay = overlays_.of(served); !overlay)
    return fail("{}: {}", path, overlay.error().message);
  const std::lock_guard lock(mutex_);
  TRIMPOT_TRY_VOID(check());  // somebody else may have been faster
  served->version = next_version_++;
  adapters_[name] = served;
  return ServedPtr(served);
}

bool Adapters::unload(const std::string& name) {
  {
    const std::lock_guard lock(mutex_);
    if (adapters_.erase(name) == 0) return false;
  }
  overlays_.drop_unloaded();
  // An adapter is hundreds of arrays of 20 to 110 KB, and what is freed between those of others
  // stays with glibc: 238 of 549 MB after 1000 loads and unloads.
  ::malloc_trim(0);
  return true;
}

std::vector<ServedPtr> Adapters::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<ServedPtr> all{served_base_};
  for (const auto& [name, served] : adapters_) all.push_back(served);
  return all;
}

}  // namespace trimpot::serve
