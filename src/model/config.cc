#include "model/config.h"

namespace trimpot {
namespace {

// A size that later arithmetic can multiply without overflow.
Result<std::int64_t> read_size(const gguf::File& file, const std::string& key,
                               std::optional<std::uint64_t> fallback = std::nullopt) {
  TRIMPOT_TRY(const std::uint64_t value,
              fallback ? file.get_uint_or(key, *fallback) : file.get_uint(key));
  constexpr std::uint64_t kMost = 1u << 24;
  if (value == 0 || value > kMost)
    return fail("{}: {} is {}; a number from 1 to {} was expected", file.path(), key, value, kMost);
  return static_cast<std::int64_t>(value);
}

Status read_rope(const gguf::File& file, const std::string& arch, ModelConfig& config) {
  TRIMPOT_TRY(config.rope_dims,
              read_size(file, arch + ".rope.dimension_count", config.attention.head_dim));
  if (config.rope_dims > config.attention.head_dim || config.rope_dims % 2 != 0)
    return fail(
        "{}: {}.rope.dimension_count is {}; an even number up to the head size {} was "
        "expected",
        file.path(), arch, config.rope_dims, config.attention.head_dim);
  TRIMPOT_TRY(const double base, file.get_float_or(arch + ".rope.freq_base", 10000.0));
  if (!(base > 1.0 && base < 1e12))
    return fail("{}: {}.rope.freq_base is {}; a number above 1 was expected", file.path(), arch,
                base);
  config.rope_base = static_cast<float>(base);
  TRIMPOT_TRY(const std::string scaling, file.get_string_or(arch + ".rope.scaling.type", "none"));
  TRIMPOT_TRY(const double old_factor, file.get_float_or(arch + ".rope.scale_linear", 1.0));
  TRIMPOT_TRY(const double factor, file.get_float_or(arch + ".rope.scaling.factor", old_factor));
  if (scaling == "linear" || (scaling == "none" && old_factor != 1.0)) {
    if (!(factor > 0.0))
      return fail("{}: {}.rope.scaling.factor is {}; a positive number was expected", file.path(),
                  arch, factor);
    config.rope_frequency_scale = static_cast<float>(1.0 / factor);
  } else if (scaling != "none") {
    return fail(
        "{}: RoPE scaling of type \"{}\" is not supported; none, linear and frequency "
        "tables (rope_freqs.weight) are",
        file.path(), scaling);
  }
  return {};
}

}  // namespace

Result<ModelConfig> read_config(const gguf::File& file) {
  ModelConfig config;
  TRIMPOT_TRY(const std::string type, file.get_string_or("general.type", "model"));
  if (type != "model")
    return fail("{}: this GGUF file is of type \"{}\", not a model", file.path(), type);
  TRIMPOT_TRY(config.architecture, file.get_string("general.architecture"));
  if (config.architecture == "trimpot") {  // a file of ours (stored.h)
    TRIMPOT_TRY(const std::uint64_t version, file.get_uint_or("trimpot.version", 1));
    if (version != 1)
      return fail("{}: trimpot.version is {}; this program knows 1, a newer trimpot wrote the file",
                  file.path(), version);
    TRIMPOT_TRY(config.architecture, file.get_string("trimpot.architecture"));
  }
  if (config.architecture != "llama")
    return fail(
        "{}: models of architecture \"{}\" are not supported yet; \"llama\" is (Llama, "
        "SmolLM, Mistral and relatives)",
        file.path(), config.architecture);
  const std::string& arch = config.architecture;
  TRIMPOT_TRY(config.name, file.get_string_or("general.name", ""));
  TRIMPOT_TRY(config.layers, read_size(file, arch + ".block_count"));
  TRIMPOT_TRY(config.hidden, read_size(file, arch + ".embedding_length"));
  TRIMPOT_TRY(config.feed_forward, read_size(file, arch + ".feed_forward_length"));
  TRIMPOT_TRY(config.context_length, read_size(file, arch + ".context_length"));
  AttentionShape& attention = config.attention;
  TRIMPOT_TRY(attention.heads, read_size(file, arch + ".attention.head_count"));
  TRIMPOT_TRY(attention.kv_heads,
              read_size(file, arch + ".attention.head_count_kv", attention.heads));
  if (attention.heads % attention.kv_heads != 0)
    return fail("{}: {} attention heads cannot share {} key/value heads evenly", file.path(),
                attention.heads, attention.kv_heads);
  TRIMPOT_TRY(attention.head_dim,
              read_size(file, arch + ".attention.key_length",
                        std::max<std::int64_t>(1, config.hidden / attention.heads)));
  TRIMPOT_TRY(const std::int64_t value_length,
              read_size(file, arch + ".attention.value_length", attention.head_dim));
  if (value_length != attention.head_dim)
    return fail(
        "{}: keys of {} and values of {} channels per head are not supported; equal sizes "
        "are",
        file.path(), attention.head_dim, value_length);
  TRIMPOT_TRY(const double eps, file.get_float(arch + ".attention.layer_norm_rms_epsilon"));
  if (!(eps >= 0.0 && eps < 1.0))
    return fail("{}: {}.attention.layer_norm_rms_epsilon is {}; a small number was expected",
                file.path(), arch, eps);
  config.rms_eps = static_cast<float>(eps);
  TRIMPOT_TRY(const std::uint64_t experts, file.get_uint_or(arch + ".expert_count", 0));
  if (experts != 0)
    return fail("{}: mixture-of-experts models ({} experts) are not supported yet", file.path(),
                experts);
  TRIMPOT_TRY_VOID(read_rope(file, arch, config));
  return config;
}

}  // namespace trimpot
