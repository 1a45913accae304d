// Checkpoints of a run: safetensors files `checkpoint-<step>.safetensors` in the run folder, with
// master values and both moments as flat arrays in the order of Parameters.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "io/safetensors/safetensors.h"
#include "tune/trainer.h"

namespace trimpot {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint-";
constexpr std::string_view kSuffix = ".safetensors";
// Parameters lie as the kernels' tiles of 16 rows do; a change of that order changes this name.
constexpr std::string_view kLayout = "tiles16";

struct Checkpoint {
  fs::file_time_type written;
  std::uint64_t step;
  std::string path;
  auto operator<=>(const Checkpoint&) const = default;
};

// In the order in which they were written, which is not that of their steps where a run began anew
// in the folder of an older one.
std::vector<Checkpoint> list_checkpoints(const std::string& folder) {
  std::vector<Checkpoint> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    std::uint64_t step = 0;
    const char* first = name.data() + kPrefix.size();
    const char* last = name.data() + name.size() - kSuffix.size();
    const auto [stopped, failure] = std::from_chars(first, last, step);
    std::error_code ignored;
    if (failure == std::errc() && stopped == last)
      found.push_back({fs::last_write_time(entry->path(), ignored), step, entry->path().string()});
  }
  std::sort(found.begin(), found.end());
  return found;
}

// Which entries of two identities (JSON objects) differ: "learning_rate was 0.005, is 0.001".
std::string differences(const std::string& was, const std::string& is) {
  const auto old = nlohmann::json::parse(was, nullptr, false);
  const auto now = nlohmann::json::parse(is, nullptr, false);
  if (!old.is_object() || !now.is_object()) return "another identity";
  std::string text;
  for (const auto& [key, value] : now.items()) {
    const auto found = old.find(key);
    if (found != old.end() && *found == value) continue;
    text += fmt::format("{}{} was {}, is {}", text.empty() ? "" : "; ", key,
                        found == old.end() ? "nothing" : found->dump(), value.dump());
  }
  return text.empty() ? "another identity" : text;
}

}  // namespace

std::optional<std::string> latest_checkpoint(const std::string& folder) {
  const auto found = list_checkpoints(folder);
  if (found.empty()) return std::nullopt;
  return found.back().path;
}

Result<std::string> Trainer::save(const std::string& folder) {
  const std::string path = fmt::format("{}/{}{}{}", folder, kPrefix, step_, kSuffix);
  Parameters& parameters = method_.parameters();
  const auto tensor = [&](std::string name, const AlignedBuffer<float>& values) {
    return safetensors::OutputTensor{
        std::move(name), "F32", {values.size()}, std::as_bytes(values.span())};
  };
  TRIMPOT_TRY_VOID(safetensors::write(
      path,
      {{"format", "trimpot-checkpoint"},
       {"layout", std::string(kLayout)},
       {"step", std::to_string(step_)},
       {"tokens", std::to_string(tokens_)},
       {"kernels", compute_.kernels.name},
       {"identity", identity_}},
      {tensor("values", parameters.values), tensor("first_moment", parameters.first_moment),
       tensor("second_moment", parameters.second_moment)}));
  const auto all = list_checkpoints(folder);
  if (options_.save_total_limit > 0 && all.size() > options_.save_total_limit)
    for (std::size_t i = 0; i < all.size() - options_.save_total_limit; ++i) {
      std::error_code ignored;  // an old checkpoint that stays does no harm
      fs::remove(all[i].path, ignored);
    }
  return path;
}

Result<std::string> Trainer::resume(const std::string& path) {
  TRIMPOT_TRY(const safetensors::File file, safetensors::File::open(path));
  const auto metadata = [&](const std::string& key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  if (metadata("format") != "trimpot-checkpoint" || metadata("layout") != kLayout)
    return fail("{}: not a checkpoint of this version of trimpot", path);
  if (metadata("identity") != identity_)
    return fail(
        "{}: this checkpoint belongs to another run ({}); repeat the run's own options, or "
        "start anew without --resume",
        path, differences(metadata("identity"), identity_));
  Parameters& parameters = method_.parameters();
  const auto read = [&](const char* name, AlignedBuffer<float>& to) -> Status {
    const safetensors::TensorInfo* tensor = file.find(name);
    if (tensor == nullptr || tensor->dtype != "F32" ||
        file.data(*tensor).size() != to.size() * sizeof(float))
      return fail("{}: tensor {} is missing or has another size than this model's", path, name);
    std::memcpy(to.data(), file.data(*tensor).data(), to.size() * sizeof(float));
    return {};
  };
  TRIMPOT_TRY_VOID(read("values", parameters.values));
  TRIMPOT_TRY_VOID(read("first_moment", parameters.first_moment));
  TRIMPOT_TRY_VOID(read("second_moment", parameters.second_moment));
  const auto number = [&](const char* key, std::uint64_t& to) -> Status {
    const std::string text = metadata(key);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), to);
    if (error != std::errc() || end != text.data() + text.size() || text.empty())
      return fail("{}: its {} is not a number", path, key);
    return {};
  };
  TRIMPOT_TRY_VOID(number("step", step_));
  TRIMPOT_TRY_VOID(number("tokens", tokens_));
  if (step_ > total_steps_)
    return fail("{}: it is at step {}, beyond this run's {}", path, step_, total_steps_);
  TRIMPOT_TRY_VOID(method_.commit(compute_.team));
  if (metadata("kernels") == compute_.kernels.name) return std::string();
  return fmt::format(
      "this run used the {0} kernels and goes on with {1}: it will not be the same "
      "bit for bit (TRIMPOT_ISA={0} makes it so on a CPU that has them)",
      metadata("kernels"), compute_.kernels.name);
}

}  // namespace trimpot
