#include "cli/inspect_own.h"

#include <algorithm>
#include <map>

#include "cli/command.h"
#include "tune/tunable.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string describe(const StoredMatrix& matrix) {
  if (matrix.nf4) return "NF4 with double quantization";
  if (matrix.type != ElementType::kI8) return std::string(element_type_info(matrix.type).name);
  std::string text = fmt::format("{}-bit codes, ", matrix.bits);
  text +=
      matrix.groups == 1 ? "one group per row" : fmt::format("groups of {}", matrix.group_columns);
  return text + (matrix.zeros ? ", zero-points" : matrix.offsets ? ", offsets" : ", symmetric");
}

Json to_json(const StoredMatrix& matrix) {
  Json json{{"format", describe(matrix)}, {"bits", matrix.bits}};
  if (!matrix.quantized()) json["bits"] = element_type_info(matrix.type).block_bytes * 8;
  // Rows with one group have as many columns in it as the layer, which differs between layers.
  json["group_size"] = matrix.groups == 1 ? 0 : matrix.group_columns;
  json["zeros"] = matrix.nf4       ? "none"
                  : matrix.zeros   ? "zero-points"
                  : matrix.offsets ? "offsets"
                                   : "symmetric";
  if (!matrix.quantized()) json["zeros"] = "none";
  return json;
}

std::string_view part_of(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> kParts[] = {
      {".codes", "codes"},          {".scales", "scales"},     {".zeros", "zero-points"},
      {".offsets", "offsets"},      {".absmax", "scales"},     {".absmax_scales", "scales"},
      {".absmax_offset", "scales"}, {".weak", "weak columns"}, {".weak_columns", "orders"},
      {"_order", "orders"},         {"norm.weight", "norms"},  {"rope_freqs.weight", "norms"}};
  if (name.starts_with("token_embd.") || name.starts_with("output.")) return "embedding, head";
  for (const auto& [ending, part] : kParts)
    if (name.ends_with(ending)) return part;
  return "dense layers";
}

Json describe_parts(const gguf::File& file) {
  Json parts = Json::array();
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    const std::string part(part_of(tensor.name));
    auto found = std::find_if(parts.begin(), parts.end(),
                              [&](const Json& json) { return json["part"] == part; });
    if (found == parts.end()) {
      parts.push_back({{"part", part}, {"tensors", 0}, {"bytes", 0}});
      found = parts.end() - 1;
    }
    (*found)["tensors"] = (*found)["tensors"].get<std::uint64_t>() + 1;
    (*found)["bytes"] = (*found)["bytes"].get<std::uint64_t>() + tensor.bytes;
  }
  return parts;
}

std::optional<StoredMatrix> head_of(const gguf::File& file, const std::string& name) {
  const auto hidden = file.get_uint("llama.embedding_length");
  const auto columns =
      static_cast<std::int64_t>(std::min<std::uint64_t>(hidden.value_or(0), 1u << 24));
  const auto matrix = stored_matrix(file, name, columns, "trimpot.head");
  return matrix ? std::optional(*matrix) : std::nullopt;
}

}  // namespace

Json describe_own(const gguf::File& file) {
  Json own{{"linear", Json::array()}};
  std::int64_t least = 0, most = 0, weights = 0;
  bool first = true;
  for (const TunableLinear& linear : tunable_linears(file)) {
    const Json format = to_json(linear.matrix);
    auto found = std::find_if(own["linear"].begin(), own["linear"].end(),
                              [&](const Json& json) { return json["format"] == format["format"]; });
    if (found == own["linear"].end()) {
      own["linear"].push_back(format);
      found = own["linear"].end() - 1;
      (*found)["layers"] = 0;
    }
    (*found)["layers"] = (*found)["layers"].get<int>() + 1;
    const std::int64_t weak = linear.matrix.weak;
    least = first ? weak : std::min(least, weak);
    most = std::max(most, weak);
    weights += weak * linear.matrix.rows;
    first = false;
  }
  own["reordered"] = file.find_tensor("residual_order") != nullptr;
  for (const char* name : {"token_embd", "output"})
    if (const auto head = head_of(file, name))
      own[std::string_view(name) == "output" ? "head" : "embedding"] = to_json(*head);
  own["parts"] = describe_parts(file);
  own["weak_columns"] = {{"least", least}, {"most", most}, {"weights", weights}};
  return own;
}

std::uint64_t own_parameters(const gguf::File& file) {
  std::int64_t count = 0;
  for (const TunableLinear& linear : tunable_linears(file))
    count += linear.matrix.rows * linear.matrix.columns;
  for (const char* name : {"token_embd", "output"})
    if (const auto head = head_of(file, name)) count += head->rows * head->columns;
  for (const gguf::TensorInfo& tensor : file.tensors())
    if (part_of(tensor.name) == "norms")
      count += static_cast<std::int64_t>(tensor.columns() * tensor.rows());
  return static_cast<std::uint64_t>(count);
}

std::string show_own_formats(const Json& own) {
  std::string text;
  const auto line = [&](std::string_view label, const std::string& value) {
    text += fmt::format("{:<15}{}\n", label, value);
  };
  for (const Json& format : own["linear"])
    line(text.empty() ? "Codes" : "",
         fmt::format("{} ({} layers)", format["format"].get<std::string>(),
                     format["layers"].get<int>()));
  const Json& weak = own["weak_columns"];
  const auto least = weak["least"].get<std::int64_t>(), most = weak["most"].get<std::int64_t>();
  if (most > 0)
    line("Weak columns",
         fmt::format("{} in every layer, f16, {} weights in all",
                     least == most ? fmt::to_string(most) : fmt::format("{} to {}", least, most),
                     weak["weights"].get<std::int64_t>()));
  line("Reordered", own["reordered"].get<bool>() ? "yes, weak columns are the last of their layers "
                                                   "(o_proj gathers its own)"
                                                 : "no");
  if (own.contains("embedding"))
    line(own.contains("head") ? "Embedding" : "Head",
         own["embedding"]["format"].get<std::string>() +
             (own.contains("head") ? "" : ", the embedding is the head"));
  if (own.contains("head")) line("Head", own["head"]["format"].get<std::string>());
  return text;
}

std::string show_own_parts(const Json& own) {
  std::string text = fmt::format("\n{:<18}{:>9}{:>12}\n", "Part", "tensors", "bytes");
  for (const Json& part : own["parts"])
    text += fmt::format("  {:<16}{:>9}{:>12}\n", part["part"].get<std::string>(),
                        part["tensors"].get<std::uint64_t>(),
                        format_bytes(part["bytes"].get<double>()));
  return text;
}

}  // namespace trimpot::cli
