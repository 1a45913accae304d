// What `trimpot inspect` says of a file in our own format (model/stored.h).
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "io/gguf/gguf.h"

namespace trimpot::cli {

// Formats of the linear layers and of the head, how many weak columns layers have, bytes by what
// they hold. Layers that do not fit the format are left out.
nlohmann::ordered_json describe_own(const gguf::File& file);
// Weights of the model that the file stands for: codes and weak columns counted, not bytes.
std::uint64_t own_parameters(const gguf::File& file);
// Lines of the text form, and the table of parts.
std::string show_own_formats(const nlohmann::ordered_json& own);
std::string show_own_parts(const nlohmann::ordered_json& own);

}  // namespace trimpot::cli
