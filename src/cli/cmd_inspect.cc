#include <fmt/ranges.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/inspect_linears.h"
#include "cli/inspect_own.h"
#include "io/gguf/gguf.h"
#include "io/printable.h"
#include "io/safetensors/safetensors.h"
#include "model/config.h"
#include "model/stored.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "tune/tunable.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

struct InspectOptions {
  std::string path;
  bool tensors = false;
  bool json = false;
};

// Names in a file may hold bytes that are no UTF-8.
std::string dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// "1.10 billion", "134.5 million", "960".
std::string format_count(std::uint64_t count) {
  const auto value = static_cast<double>(count);
  if (value >= 1e9) return fmt::format("{:.2f} billion", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.1f} million", value / 1e6);
  return fmt::format("{}", count);
}

std::string line(std::string_view label, std::string_view value) {
  return fmt::format("{:<15}{}\n", label, value);
}

std::string text_value(const gguf::File& file, std::string_view key) {
  return file.get_string_or(key, "").value_or("");
}

std::uint64_t elements(const gguf::TensorInfo& tensor) { return tensor.columns() * tensor.rows(); }

struct TypeSum {
  std::uint64_t tensors = 0, parameters = 0, bytes = 0;
};

// Sizes that most architectures name alike; works for those that this program cannot run, too.
Json read_sizes(const gguf::File& file, const std::string& arch) {
  Json sizes;
  const auto add = [&](const char* name, const std::string& key) {
    if (const auto value = file.get_uint(arch + key)) sizes[name] = *value;
  };
  add("layers", ".block_count");
  add("hidden", ".embedding_length");
  add("feed_forward", ".feed_forward_length");
  add("heads", ".attention.head_count");
  add("kv_heads", ".attention.head_count_kv");
  add("context", ".context_length");
  for (const char* name : {"token_embd.weight", "token_embd.codes"})
    if (const gguf::TensorInfo* embedding = file.find_tensor(name))
      sizes["vocabulary"] = embedding->rows();
  return sizes;
}

Json read_tokenizer(const gguf::File& file) {
  const std::string model = text_value(file, "tokenizer.ggml.model");
  if (model.empty()) return nullptr;
  Json json{{"model", model}, {"pre", text_value(file, "tokenizer.ggml.pre")}};
  if (const gguf::Value* tokens = file.find("tokenizer.ggml.tokens"))
    json["tokens"] = tokens->count;
  const auto tokenizer = Tokenizer::from_gguf(file);
  json["usable"] = tokenizer.has_value();
  if (!tokenizer) json["problem"] = tokenizer.error().message;
  return json;
}

Json read_template(const gguf::File& file) {
  const bool present = file.find("tokenizer.chat_template") != nullptr;
  Json json{{"present", present}};
  if (!present) return json;
  const auto chat_template = ChatTemplate::from_gguf(file);
  json["usable"] = chat_template.has_value();
  if (!chat_template) json["problem"] = chat_template.error().message;
  return json;
}

// What each method could learn of the file; `problems` says why some cannot.
Json read_tuning(const gguf::File& file, std::uint64_t parameters, Json& problems) {
  const auto linears = tunable_linears(file);
  Json methods = Json::object();
  problems = Json::object();
  for (const std::string& method : method_names()) {
    const auto options = preset_sizes(method, linears);
    const auto size = options ? tuning_size(linears, *options) : fail(options.error());
    if (!size) {
      problems[method] = size.error().message;
      continue;
    }
    methods[method] = {
        {"learnable", size->trainable},
        {"percent", 100.0 * static_cast<double>(size->trainable) / static_cast<double>(parameters)},
        {"adapter_bytes", size->adapter_bytes},
        {"tensors", size->tensors}};
    if (is_low_rank(method)) methods[method]["rank"] = options->rank;
  }
  return methods;
}

// Why this program cannot run the model; empty if nothing in the header speaks against it. Tensors
// of plain numbers may be anything, so only blocks that nothing here decodes count.
std::string find_problem(const gguf::File& file) {
  if (const auto config = read_config(file); !config) return config.error().message;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    const ElementTypeInfo type = element_type_info(tensor.type);
    if (!type.computable && type.block_elements > 1)
      return fmt::format("{}: tensor {}: type {} cannot be computed with", file.path(),
                         printable(tensor.name), type.name);
  }
  return {};
}

Json describe_model(const gguf::File& file, bool with_tensors) {
  const bool own = is_own_file(file).value_or(false);
  const std::string arch = text_value(file, own ? "trimpot.architecture" : "general.architecture");
  const std::string problem = find_problem(file);
  Json json{{"file", file.path()},
            {"format", own ? "trimpot" : "gguf"},
            {"version", file.version()},
            {"bytes", file.file_bytes()},
            {"name", text_value(file, "general.name")},
            {"architecture", arch},
            {"can_run", problem.empty()}};
  if (!problem.empty()) json["problem"] = problem;
  json["sizes"] = read_sizes(file, arch);
  json["tied_head"] =
      file.find_tensor("output.weight") == nullptr && file.find_tensor("output.codes") == nullptr;
  json["tokenizer"] = read_tokenizer(file);
  json["chat_template"] = read_template(file);

  std::map<std::string, TypeSum> types;
  TypeSum all;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    TypeSum& type = types[std::string(element_type_info(tensor.type).name)];
    for (TypeSum* sum : {&type, &all}) {
      ++sum->tensors;
      sum->parameters += elements(tensor);
      sum->bytes += tensor.bytes;
    }
  }
  json["tensor_types"] = Json::array();
  for (const auto& [name, type] : types)
    json["tensor_types"].push_back({{"type", name},
                                    {"tensors", type.tensors},
                                    {"parameters", type.parameters},
                                    {"bytes", type.bytes}});
  if (own) {
    json["quantization"] = describe_own(file);
    all.parameters = own_parameters(file);
  }
  json["tensor_count"] = all.tensors;
  json["parameters"] = all.parameters;
  json["tensor_bytes"] = all.bytes;
  json["bits_per_weight"] = all.parameters == 0 ? 0.0
                                                : 8.0 * static_cast<double>(all.bytes) /
                                                      static_cast<double>(all.parameters);
  json["linear_layers"] = describe_linears(file);
  json["tuning"] = read_tuning(file, all.parameters, json["not_tunable"]);
  if (!with_tensors) return json;
  json["tensors"] = Json::array();
  for (const gguf::TensorInfo& tensor : file.tensors())
    json["tensors"].push_back({{"name", tensor.name},
                               {"type", element_type_info(tensor.type).name},
                               {"shape", tensor.shape},
                               {"bytes", tensor.bytes}});
  return json;
}

std::string show_sizes(const Json& sizes) {
  constexpr std::pair<const char*, const char*> kLabels[] = {{"layers", "layers"},
                                                             {"hidden", "hidden"},
                                                             {"feed_forward", "feed-forward"},
                                                             {"heads", "heads"},
                                                             {"kv_heads", "key/value heads"},
                                                             {"context", "context"},
                                                             {"vocabulary", "vocabulary"}};
  std::string text;
  for (const auto& [key, label] : kLabels)
    if (sizes.contains(key))
      text +=
          fmt::format("{}{} {}", text.empty() ? "" : ", ", label, sizes[key].get<std::uint64_t>());
  return text.empty() ? "not in the metadata" : text;
}

std::string show_tokenizer(const Json& tokenizer) {
  if (tokenizer.is_null()) return "none";
  const std::string model = tokenizer["model"], pre = tokenizer["pre"];
  std::string text = model == "gpt2" ? "byte-level BPE" : printable(model);
  if (!pre.empty()) text += fmt::format(" ({})", printable(pre));
  if (tokenizer.contains("tokens"))
    text += fmt::format(", {} tokens", tokenizer["tokens"].get<std::uint64_t>());
  if (!tokenizer["usable"]) text += "; not usable here";
  return text;
}

std::string show_tuning(const Json& json) {
  const Json& tuning = json["tuning"];
  if (!json["can_run"]) return "Tuning: not possible, see above\n";
  if (tuning.empty()) return "Tuning: not possible, there is no linear layer that could learn\n";
  std::string text = fmt::format("{:<12}{:>12}{:>12}{:>9}{:>14}\n", "Tuning", "learnable", "of all",
                                 "tensors", "adapter");
  for (const auto& [method, size] : tuning.items()) {
    const auto tensors = size["tensors"].get<std::uint64_t>();
    text += fmt::format("  {:<10}{:>12}{:>10.2f} %{:>9}{:>14}", method,
                        size["learnable"].get<std::uint64_t>(), size["percent"].get<double>(),
                        tensors > 0 ? fmt::to_string(tensors) : "-",
                        tensors > 0 ? format_bytes(size["adapter_bytes"].get<double>()) : "-");
    if (size.contains("rank")) text += fmt::format("  rank {}", size["rank"].get<std::int64_t>());
    text += "\n";
  }
  std::string others;
  for (const auto& [method, problem] : json["not_tunable"].items())
    others += fmt::format("{}{}", others.empty() ? "" : ", ", method);
  if (!others.empty()) text += fmt::format("  not with this file: {} (--json says why)\n", others);
  return text;
}

std::string show_types(const Json& types) {
  if (types.empty()) return {};
  std::string text =
      fmt::format("\n{:<12}{:>9}{:>17}{:>12}\n", "Type", "tensors", "parameters", "bytes");
  for (const Json& type : types)
    text += fmt::format("  {:<10}{:>9}{:>17}{:>12}\n", type["type"].get<std::string>(),
                        type["tensors"].get<std::uint64_t>(),
                        format_count(type["parameters"].get<std::uint64_t>()),
                        format_bytes(type["bytes"].get<double>()));
  return text;
}

std::string show_model(const Json& json, const gguf::File& file, bool with_tensors) {
  const std::string name = json["name"], arch = json["architecture"];
  std::string text = line("Name", name.empty() ? "(none)" : printable(name));
  text +=
      line("Architecture", (arch.empty() ? "(none)" : printable(arch)) +
                               (json["format"] == "trimpot" ? ", in trimpot's own format" : ""));
  if (!json["can_run"])
    text += line("", "this program cannot run it: " + json["problem"].get<std::string>());
  text += line("Sizes", show_sizes(json["sizes"]));
  text += line("Tokenizer", show_tokenizer(json["tokenizer"]));
  const Json& chat = json["chat_template"];
  text += line("Chat template", !chat["present"].get<bool>() ? "none"
                                : chat["usable"].get<bool>()
                                    ? "yes (ChatML)"
                                    : "yes, but of a kind this program cannot render");
  text += line("Parameters", fmt::format("{}, {:.2f} bits per weight",
                                         format_count(json["parameters"].get<std::uint64_t>()),
                                         json["bits_per_weight"].get<double>()));
  text += line(
      "File",
      fmt::format("{}, {} tensors, GGUF version {}", format_bytes(json["bytes"].get<double>()),
                  json["tensor_count"].get<std::uint64_t>(), json["version"].get<std::uint32_t>()));
  if (const Json& linears = json["linear_layers"]; !linears.is_null())
    text += line("Linear layers", fmt::format("{} weights, {:.2f} bits per weight with scales",
                                              format_count(linears["weights"].get<std::uint64_t>()),
                                              linears["bits_per_weight"].get<double>()));
  if (json.contains("quantization")) text += show_own_formats(json["quantization"]);
  text += json.contains("quantization") ? show_own_parts(json["quantization"])
                                        : show_types(json["tensor_types"]);
  text += "\n" + show_tuning(json);
  if (!with_tensors) return text;
  text += fmt::format("\n{:<32}{:<8}{:<22}{:>12}\n", "Tensor", "type", "shape", "bytes");
  for (const gguf::TensorInfo& tensor : file.tensors())
    text += fmt::format("{:<32}{:<8}{:<22}{:>12}\n", printable(tensor.name),
                        element_type_info(tensor.type).name,
                        fmt::format("[{}]", fmt::join(tensor.shape, ", ")), tensor.bytes);
  return text;
}

// Adapters (and any other safetensors file: then metadata and tensors are all there is to say).
Status inspect_adapter(const InspectOptions& options) {
  TRIMPOT_TRY(const safetensors::File file, safetensors::File::open(options.path));
  const auto metadata = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  const bool is_adapter = metadata("format") == "trimpot-adapter";
  std::uint64_t values = 0, bytes = 0;
  std::map<std::string, std::uint64_t> kinds;  // "lora_a" -> tensors
  for (const safetensors::TensorInfo& tensor : file.tensors()) {
    bytes += tensor.end - tensor.begin;
    ++kinds[tensor.name.substr(tensor.name.rfind('.') + 1)];
    if (tensor.name.ends_with(".weak_columns")) continue;  // they learn nothing
    values += (tensor.end - tensor.begin) /
              std::max<std::uint64_t>(1, safetensors::dtype_bytes(tensor.dtype));
  }
  if (options.json) {
    Json json{{"file", options.path},
              {"format", is_adapter ? "trimpot-adapter" : "safetensors"},
              {"metadata", file.metadata()},
              {"tensor_count", file.tensors().size()},
              {"kinds", kinds},
              {"values", values},
              {"tensor_bytes", bytes}};
    if (options.tensors)
      for (const auto& tensor : file.tensors())
        json["tensors"].push_back({{"name", tensor.name},
                                   {"type", tensor.dtype},
                                   {"shape", tensor.shape},
                                   {"bytes", tensor.end - tensor.begin}});
    return print(dump(json));
  }
  std::string text;
  if (is_adapter) {
    text += line("Adapter", fmt::format("of trimpot, version {}", printable(metadata("version"))));
    text += line("Method", printable(metadata("method")));
    // Options are JSON with many quotes: shown as key value pairs.
    const Json parsed = Json::parse(metadata("options"), nullptr, false);
    std::string shown;
    if (parsed.is_object())
      for (const auto& [key, value] : parsed.items())
        shown +=
            fmt::format("{}{} {}", shown.empty() ? "" : ", ", printable(key),
                        printable(value.is_string()
                                      ? value.get<std::string>()
                                      : value.dump(-1, ' ', true, Json::error_handler_t::replace)));
    text += line("Options", shown.empty() ? "(none)" : shown);
    std::string holds;
    for (const auto& [kind, count] : kinds)
      holds += fmt::format("{}{} {}", holds.empty() ? "" : ", ", count, printable(kind));
    text += line("Holds", holds.empty() ? "nothing" : holds);
    text += line("Base codes", printable(metadata("base_codes")));
    text += line("Base weights", printable(metadata("base_weights")));
  } else {
    text += line("File", "safetensors, not an adapter of trimpot");
    for (const auto& [key, value] : file.metadata())
      text += line("Metadata", fmt::format("{}: {}", printable(key), printable(value)));
  }
  text +=
      line("Tensors", fmt::format("{}, {} values, {}", file.tensors().size(), format_count(values),
                                  format_bytes(static_cast<double>(bytes))));
  if (options.tensors) {
    text += fmt::format("\n{:<40}{:<8}{:<18}{:>12}\n", "Tensor", "type", "shape", "bytes");
    for (const auto& tensor : file.tensors())
      text += fmt::format("{:<40}{:<8}{:<18}{:>12}\n", printable(tensor.name), tensor.dtype,
                          fmt::format("[{}]", fmt::join(tensor.shape, ", ")),
                          tensor.end - tensor.begin);
  }
  return print(text);
}

Status inspect(const InspectOptions& options) {
  if (options.path.ends_with(".safetensors")) return inspect_adapter(options);
  TRIMPOT_TRY(const gguf::File file, gguf::File::open(options.path));
  const Json json = describe_model(file, options.json && options.tensors);
  return print(options.json ? dump(json) : show_model(json, file, options.tensors));
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "inspect", "Show what a model file or an adapter holds, and what of it can be tuned");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("file", options->path, "GGUF model, or adapter (.safetensors)")->required();
  command->add_flag("--tensors", options->tensors, "list every tensor");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Only the header of the file is read, so this is quick for a model of any size.\n"
      "Examples:\n"
      "  trimpot inspect model.gguf\n"
      "  trimpot inspect model.gguf --tensors\n"
      "  trimpot inspect task.safetensors");
  command->callback([options, &action] { action = [options] { return inspect(*options); }; });
}

}  // namespace trimpot::cli
