// Prometheus' text format.
#pragma once

#include <string>

#include "serve/adapters.h"
#include "serve/engine.h"

namespace trimpot::serve {

// Counters of an adapter end with it: they are dropped when it is unloaded.
std::string metrics_text(const EngineState& state, const std::vector<ServedPtr>& served);

}  // namespace trimpot::serve
