#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "eval/diff.h"
#include "io/gguf/gguf.h"
#include "io/printable.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kShown = 10;  // tensors and metadata keys without --all

struct DiffOptions {
  std::string a, b;
  bool json = false;
  bool all = false;
};

std::uint64_t bytes_of(const TensorDifference& tensor) {
  return tensor.code_bytes + tensor.scale_bytes + tensor.offset_bytes + tensor.weak_bytes +
         tensor.dense_bytes;
}

Json to_json(const ValueChange& change, bool absolute) {
  Json json{{"count", change.count},
            {"changed", change.changed},
            {"largest_relative", change.largest_relative},
            {"rms_relative", change.rms_relative},
            {"without_ratio", change.without_ratio}};
  if (absolute) json["largest_absolute"] = change.largest_absolute;
  return json;
}

// All tensors: a machine has no trouble with long lists.
Json to_json(const DiffOptions& options, const FileDifference& d) {
  Json json{{"a", options.a},
            {"b", options.b},
            {"identical", d.identical()},
            {"only_scales_and_offsets", d.only_scales_and_offsets()},
            {"only_tuned", d.only_tuned()},
            {"same_header", d.same_header},
            {"same_size", d.same_size},
            {"a_bytes", d.a_bytes},
            {"b_bytes", d.b_bytes},
            {"a_header_bytes", d.a_header_bytes},
            {"b_header_bytes", d.b_header_bytes},
            {"compared", d.compared},
            {"code_bytes", d.code_bytes},
            {"scale_bytes", d.scale_bytes},
            {"offset_bytes", d.offset_bytes},
            {"weak_bytes", d.weak_bytes},
            {"dense_bytes", d.dense_bytes},
            {"padding_bytes", d.padding_bytes},
            {"metadata_differences", Json::array()},
            {"only_in_a", d.only_in_a},
            {"only_in_b", d.only_in_b},
            {"other_forms", Json::array()},
            {"tensors", Json::array()},
            {"summary", summarize(d)}};
  for (const MetadataDifference& difference : d.metadata)
    json["metadata_differences"].push_back({{"key", difference.key},
                                            {"a", difference.a ? Json(*difference.a) : Json()},
                                            {"b", difference.b ? Json(*difference.b) : Json()}});
  for (const FormDifference& form : d.forms)
    json["other_forms"].push_back({{"name", form.name}, {"a", form.a}, {"b", form.b}});
  for (const TensorDifference& tensor : d.tensors) {
    Json entry{{"name", tensor.name},
               {"type", element_type_info(tensor.type).name},
               {"code_bytes", tensor.code_bytes},
               {"scale_bytes", tensor.scale_bytes},
               {"offset_bytes", tensor.offset_bytes},
               {"weak_bytes", tensor.weak_bytes},
               {"dense_bytes", tensor.dense_bytes}};
    if (tensor.scales.count > 0) entry["scales"] = to_json(tensor.scales, false);
    if (tensor.offsets.count > 0) entry["offsets"] = to_json(tensor.offsets, false);
    if (tensor.dense.count > 0) entry["values"] = to_json(tensor.dense, true);
    json["tensors"].push_back(std::move(entry));
  }
  return json;
}

// "12.34 / 1.20 %": largest and root mean square; nothing where the type has no such numbers.
std::string show_change(const ValueChange& change) {
  if (change.count == 0) return "-";
  return fmt::format("{:.2f} / {:.2f} %", 100 * change.largest_relative, 100 * change.rms_relative);
}

std::string show_tensors(const FileDifference& d, bool all) {
  if (d.tensors.empty()) return {};
  std::vector<const TensorDifference*> order;
  for (const TensorDifference& tensor : d.tensors) order.push_back(&tensor);
  // The ones that moved the most come first; with --all the order of the file.
  const auto strength = [](const TensorDifference* tensor) {
    return std::max(
        {tensor->scales.rms_relative, tensor->offsets.rms_relative, tensor->dense.rms_relative});
  };
  if (!all)
    std::stable_sort(order.begin(), order.end(),
                     [&](const auto* x, const auto* y) { return strength(x) > strength(y); });
  const std::size_t shown = all ? order.size() : std::min(order.size(), kShown);
  std::string text =
      fmt::format("{:<28}{:<6}{:>11}{:>9}{:>20}{:>20}\n", "", "", "bytes", "", "scales", "offsets");
  text += fmt::format("{:<28}{:<6}{:>11}{:>9}{:>20}{:>20}\n", "Tensor", "type", "changed",
                      "in codes", "largest / RMS", "largest / RMS");
  for (std::size_t i = 0; i < shown; ++i) {
    const TensorDifference& t = *order[i];
    const std::string name = printable(t.name);
    if (t.dense.count > 0) {
      text += fmt::format("{:<28}{:<6}{:>11}{:>9}{:>20}  values, largest {:.3g}\n", name,
                          element_type_info(t.type).name, bytes_of(t), "-", show_change(t.dense),
                          t.dense.largest_absolute);
      continue;
    }
    text +=
        fmt::format("{:<28}{:<6}{:>11}{:>9}{:>20}{:>20}\n", name, element_type_info(t.type).name,
                    bytes_of(t), t.code_bytes, show_change(t.scales), show_change(t.offsets));
  }
  if (shown < order.size())
    text += fmt::format("... and {} more (--all lists them)\n", order.size() - shown);
  return text + "\n";
}

std::string show_metadata(const FileDifference& d, bool all) {
  std::string text;
  const std::size_t shown = all ? d.metadata.size() : std::min(d.metadata.size(), kShown);
  for (std::size_t i = 0; i < shown; ++i) {
    const MetadataDifference& m = d.metadata[i];
    text += fmt::format("  {}: {} | {}\n", printable(m.key), m.a.value_or("(absent)"),
                        m.b.value_or("(absent)"));
  }
  if (shown < d.metadata.size())
    text += fmt::format("  ... and {} more (--all lists them)\n", d.metadata.size() - shown);
  return text.empty() ? text : "Metadata (A | B)\n" + text + "\n";
}

std::string show_sets(const FileDifference& d, bool all) {
  std::vector<std::string> lines;
  for (const FormDifference& form : d.forms)
    lines.push_back(fmt::format("{}: {} | {}", printable(form.name), form.a, form.b));
  for (const std::string& name : d.only_in_a)
    lines.push_back(fmt::format("{}: only in A", printable(name)));
  for (const std::string& name : d.only_in_b)
    lines.push_back(fmt::format("{}: only in B", printable(name)));
  if (lines.empty()) return {};
  const std::size_t shown = all ? lines.size() : std::min(lines.size(), kShown);
  std::string text = "Tensors that cannot be compared (A | B)\n";
  for (std::size_t i = 0; i < shown; ++i) text += "  " + lines[i] + "\n";
  if (shown < lines.size())
    text += fmt::format("  ... and {} more (--all lists them)\n", lines.size() - shown);
  return text + "\n";
}

std::string show(const DiffOptions& options, const FileDifference& d) {
  std::string text = fmt::format("A  {}, {} bytes\nB  {}, {} bytes\n\n", options.a, d.a_bytes,
                                 options.b, d.b_bytes);
  text += show_metadata(d, options.all) + show_sets(d, options.all) + show_tensors(d, options.all);
  if (!d.tensors.empty())
    text += fmt::format(
        "Bytes that differ: codes {}, scales {}, offsets {}, weak columns {}, dense tensors {}\n",
        d.code_bytes, d.scale_bytes, d.offset_bytes, d.weak_bytes, d.dense_bytes);
  return text + summarize(d) + "\n";
}

Status diff(const DiffOptions& options) {
  TRIMPOT_TRY(const gguf::File a, gguf::File::open(options.a));
  TRIMPOT_TRY(const gguf::File b, gguf::File::open(options.b));
  const FileDifference difference = diff_files(a, b);
  if (!options.json) return print(show(options, difference));
  return print(to_json(options, difference).dump(2, ' ', false, Json::error_handler_t::replace) +
               "\n");
}

}  // namespace

void add_diff(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("diff", "Show what differs between two models: codes, scales, metadata");
  auto options = std::make_shared<DiffOptions>();
  command->add_option("A", options->a, "GGUF file")->required();
  command->add_option("B", options->b, "GGUF file to compare with it")->required();
  command->add_flag("--all", options->all, "list every tensor that differs, in file order");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Changes are relative to A; RMS is over all numbers of a tensor, changed or not.\n"
      "The exit code is 0 whether or not the files differ.\n"
      "Examples:\n"
      "  trimpot diff model.gguf tuned.gguf\n"
      "  trimpot diff model.gguf tuned.gguf --json | jq .code_bytes");
  command->callback([options, &action] { action = [options] { return diff(*options); }; });
}

}  // namespace trimpot::cli
