// What a request can ask for: the base, or an adapter beside it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "serve/usage.h"
#include "tune/adapter.h"

namespace trimpot::serve {

struct Served {
  std::string name;
  std::string path;
  std::uint64_t version = 0;       // never given twice; 0: the base
  std::int64_t created = 0;        // seconds since 1970
  std::optional<Adapter> adapter;  // as in its file; nothing: the base
  mutable Usage usage;
};
// A request holds what it asked for until it is done, so that adapters can be unloaded any time.
using ServedPtr = std::shared_ptr<const Served>;

}  // namespace trimpot::serve
