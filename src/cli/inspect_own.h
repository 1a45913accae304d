// What `trimpot inspect` says of a file in our own format (model/stored.h).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "io/gguf/gguf.h"

namespace trimpot::cli {

// Formats of the linear layers and of the head, bytes by what they hold, and the weak columns of
// every layer as channels of the original model. Layers that do not fit the format are left out.
nlohmann::ordered_json describe_own(const gguf::File& file);
// Weights of the model that the file stands for: codes and weak columns counted, not bytes.
std::uint64_t own_parameters(const gguf::File& file);
// Lines of the text form, and the table of parts.
std::string show_own_formats(const nlohmann::ordered_json& own);
std::string show_own_parts(const nlohmann::ordered_json& own);

}  // namespace trimpot::cli
