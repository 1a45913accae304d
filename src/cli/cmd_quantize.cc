#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/command.h"
#include "cli/engine.h"
#include "cli/stage_progress.h"
#include "quantize/model_quantizer.h"

namespace trimpot::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string input, output;
  std::string method;
  std::optional<int> bits;
  std::optional<std::int64_t> group_size;
  std::string zeros;
  std::string search, reconstruct, reorder;
  std::int64_t weak_columns = 0;  // not given
  std::string weak_columns_from;
  std::string head = "keep";
  std::string calibration;
  std::size_t samples = 32;
  std::size_t length = 512;
  std::optional<double> damping;
  bool act_order = false;
  int threads = 0;
  bool quiet = false, json = false;
};

Result<Recipe> make_recipe(const Options& options) {
  TRIMPOT_TRY(Recipe recipe, recipe_of(options.method));
  const bool codes = recipe.target == Target::kCodes && options.method != "int8";
  if (options.bits && !codes) return fail("--bits: method {} has a fixed format", options.method);
  if (codes) recipe.scheme.bits = options.bits.value_or(4);
  if (options.group_size) {
    if (!codes) return fail("--group-size: method {} has a fixed format", options.method);
    const std::int64_t size = *options.group_size;
    if (size != -1 && (size < 32 || size % 32 != 0))
      return fail("--group-size {}: a multiple of 32, or -1 for one group per row, was expected",
                  size);
    recipe.scheme.group_size = size;
  }
  if (!options.zeros.empty()) {
    if (!codes) return fail("--zeros: method {} has a fixed format", options.method);
    recipe.scheme.zeros = options.zeros == "symmetric" ? ZeroKind::kSymmetric
                          : options.zeros == "float"   ? ZeroKind::kOffset
                                                       : ZeroKind::kInteger;
  }
  if (!options.search.empty())
    recipe.search = options.search == "grid" ? Search::kGrid : Search::kMinMax;
  if (!options.reconstruct.empty())
    recipe.reconstruct = options.reconstruct == "optq" ? Reconstruct::kOptq : Reconstruct::kRound;
  if (!codes && (recipe.search != Search::kMinMax || recipe.reconstruct != Reconstruct::kRound))
    return fail("--search, --reconstruct: method {} only rounds", options.method);
  if (options.weak_columns != 0) {
    if (recipe.selection == Selection::kNone)
      return fail("--weak-columns: methods owq and qeft keep some, {} does not", options.method);
    recipe.weak_columns = options.weak_columns;
  }
  if (!options.reorder.empty()) {
    if (recipe.selection != Selection::kGlobal)
      return fail("--reorder: only method qeft chooses columns that the whole model shares");
    recipe.reorder = options.reorder == "offline";
  }
  if ((options.act_order || options.damping) && recipe.reconstruct != Reconstruct::kOptq)
    return fail("--act-order, --damping: they belong to --reconstruct optq, and method {} rounds",
                options.method);
  recipe.act_order = options.act_order;
  recipe.damping = options.damping.value_or(0.01);
  return recipe;
}

// Windows from the start of the text, without a begin token.
Result<std::vector<std::vector<TokenId>>> calibration_windows(const Options& options,
                                                              const gguf::File& file) {
  if (options.calibration.empty())
    return fail("method {} needs calibration text: --calib FILE (any text, about {} words)",
                options.method, options.samples * options.length * 3 / 4);
  TRIMPOT_TRY(const Tokenizer tokenizer, Tokenizer::from_gguf(file));
  TRIMPOT_TRY(const std::string text, read_text_file(options.calibration));
  TRIMPOT_TRY(const ModelConfig config, read_config(file));
  if (static_cast<std::int64_t>(options.length) > config.context_length)
    return fail("--calib-length {}: the model's context has {} tokens", options.length,
                config.context_length);
  const std::vector<TokenId> tokens = tokenizer.encode(text);
  if (tokens.size() < options.length)
    return fail(
        "{}: {} tokens are less than one calibration window of {}; give more text or a "
        "smaller --calib-length",
        options.calibration, tokens.size(), options.length);
  std::vector<std::vector<TokenId>> windows;
  for (std::size_t at = 0; at + options.length <= tokens.size() && windows.size() < options.samples;
       at += options.length)
    windows.emplace_back(tokens.begin() + static_cast<std::ptrdiff_t>(at),
                         tokens.begin() + static_cast<std::ptrdiff_t>(at + options.length));
  if (windows.size() < options.samples && !options.quiet)
    note(fmt::format("warning: {} holds only {} of {} calibration windows", options.calibration,
                     windows.size(), options.samples));
  return windows;
}

bool is_quantized(const gguf::File& file) {
  for (const gguf::TensorInfo& tensor : file.tensors())
    if (tensor.name.starts_with("blk.") &&
        (tensor.name.ends_with(".codes") || element_type_info(tensor.type).block_elements > 1))
      return true;
  return false;
}

Status report(const Options& options, const QuantizeReport& result, std::size_t windows) {
  const double bytes = file_bytes(options.output);
  if (options.json) {
    const Json json{{"output", options.output},
                    {"bytes", bytes},
                    {"method", options.method},
                    {"seconds", result.seconds},
                    {"sensitivity_seconds", result.sensitivity_seconds},
                    {"statistics_seconds", result.statistics_seconds},
                    {"layers_seconds", result.layers_seconds},
                    {"calibration_windows", windows},
                    {"weights", result.weights},
                    {"weak_values", result.tunable_weak},
                    {"global_columns", result.global_columns},
                    {"peak_rss_mb", static_cast<double>(peak_memory()) / 1e6}};
    return print(dump(json) + "\n");
  }
  return print(fmt::format("wrote {} ({}) in {}, {} peak memory\n", options.output,
                           format_bytes(bytes), format_duration(result.seconds),
                           format_bytes(static_cast<double>(peak_memory()))));
}

Status quantize(const Options& options) {
  if (!options.output.ends_with(".gguf"))
    return fail("{}: the output must end in .gguf", options.output);
  TRIMPOT_TRY_VOID(check_output_file(
      options.output, std::array{options.input, options.calibration, options.weak_columns_from}));
  QuantizeOptions how;
  TRIMPOT_TRY(how.recipe, make_recipe(options));
  how.weak_columns_from = options.weak_columns_from;
  if (!how.weak_columns_from.empty() && how.recipe.selection == Selection::kNone)
    return fail("--weak-columns-from: methods owq and qeft keep weak columns, {} does not",
                options.method);
  TRIMPOT_TRY(how.head, head_format_of(options.head, how.recipe.scheme.group_size));
  TRIMPOT_TRY(const gguf::File file, gguf::File::open(options.input));
  if (how.recipe.needs_calibration()) {
    TRIMPOT_TRY(how.calibration, calibration_windows(options, file));
  }
  if (!options.quiet && is_quantized(file))
    note(
        fmt::format("{} is quantized already: its weights are dequantized first, what they lost "
                    "stays lost",
                    options.input));
  TRIMPOT_TRY(const Kernels* kernels, select_kernels());
  Compute compute(*kernels, Precision::kF32,
                  options.threads > 0 ? options.threads : default_thread_count());
  StageProgress progress(options.quiet);
  auto result =
      quantize_model(compute, file, options.output, how,
                     [&](double done, const std::string& what) { progress.update(done, what); });
  progress.finish();
  if (!result) return fail(result.error());
  return report(options, *result, how.calibration.size());
}

void add_method_options(CLI::App& command, Options& options) {
  command
      .add_option(
          "--method", options.method,
          "rtn (round to nearest), optq (GPTQ), owq, qeft (weak columns in f16), nf4, int8, "
          "or f16, bf16, f32: dequantize")
      ->required()
      ->check(CLI::IsMember({"rtn", "optq", "owq", "qeft", "nf4", "int8", "f16", "bf16", "f32"}));
  command.add_option("--bits", options.bits, "bits of a code (default: 4)")
      ->check(CLI::IsMember({3, 4, 8}));
  command.add_option("--group-size", options.group_size,
                     "columns that share a scale, a multiple of 32; -1: a whole row (default: 128, "
                     "owq -1)");
  command
      .add_option("--zeros", options.zeros,
                  "integer zero-points (default), float offsets, or symmetric")
      ->check(CLI::IsMember({"integer", "float", "symmetric"}));
  command
      .add_option("--weak-columns", options.weak_columns,
                  "columns of every layer that stay in f16 (owq, qeft; default 16)")
      ->check(whole_number(1));
  command.add_option("--weak-columns-from", options.weak_columns_from,
                     "take the weak columns of this model: to merge its tuned ones later");
  command
      .add_option("--search", options.search,
                  "a group's range: minmax, or grid (clipping with the least squared error)")
      ->check(CLI::IsMember({"minmax", "grid"}));
  command
      .add_option("--reconstruct", options.reconstruct,
                  "codes: rtn (round to nearest) or optq (later columns make up for earlier ones)")
      ->check(CLI::IsMember({"rtn", "optq"}));
  command
      .add_option("--reorder", options.reorder,
                  "qeft: offline moves the weak columns of the whole model to the end; online "
                  "gathers them at run time")
      ->check(CLI::IsMember({"offline", "online"}));
  command.add_flag("--act-order", options.act_order,
                   "optq: quantize the columns with the largest inputs first");
  command
      .add_option("--damping", options.damping,
                  "added to the Hessian's diagonal, as a part of its mean (default: 0.01)")
      ->check(number_between(0, 1e6));
  command
      .add_option("--head-type", options.head,
                  "embedding and head: keep, f32, f16, bf16, q8_0, q8, q4, q3")
      ->capture_default_str();
}

}  // namespace

void add_quantize(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("quantize", "Make a 3-, 4- or 8-bit model of any GGUF, ready to be tuned");
  auto options = std::make_shared<Options>();
  command->add_option("input", options->input, "GGUF model")->required();
  command->add_option("output", options->output, "the file to write (.gguf)")->required();
  add_method_options(*command, *options);
  command->add_option("--calib,--calibration", options->calibration,
                      "calibration text (optq, owq, qeft): any text file");
  command->add_option("--calib-samples", options->samples, "windows of it")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--calib-length", options->length, "tokens of a window")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "threads (default: all cores)")
      ->check(CLI::Range(0, 1024));
  command->add_flag("-q,--quiet", options->quiet, "no progress");
  command->add_flag("--json", options->json, "one JSON object instead of text");
  command->footer(
      "Examples:\n"
      "  trimpot quantize model.gguf small.gguf --method rtn --bits 3 --group-size 64\n"
      "  trimpot quantize model.gguf small.gguf --method qeft --calib notes.txt\n"
      "  trimpot quantize model.gguf plain.gguf --method f16");
  command->callback([options, &action] { action = [options] { return quantize(*options); }; });
}

}  // namespace trimpot::cli
