// What reading adapters, applying them to a model and merging them into its weights have in common.
#pragma once

#include <new>
#include <span>
#include <vector>

#include "sys/thread_team.h"
#include "tune/adapter.h"

namespace trimpot {

// The sum of the adapters' differences of one layer's columns.
struct WeakSum {
  std::vector<std::int32_t> channels;  // of all adapters, each once, in the order they come in
  std::vector<float> values;           // [rows, channels], original row order
};
WeakSum sum_weak(std::span<const Adapter> adapters, std::size_t index, std::int64_t rows);

// Original row at a position (null: the same one).
inline std::int64_t original(const ColumnOrder& order, std::int64_t position) {
  return order ? (*order)[static_cast<std::size_t>(position)] : position;
}

// Scales and zero-points of one layer under the adapters. Errors: a factor, values that are not
// finite.
Status overlay_scales(std::span<const Adapter> adapters, std::size_t index, const Model& model,
                      LinearOverlay& out);

// f16(old + difference) for columns that the layer has. Errors: others, values that are not finite.
Status overlay_weak(const WeakSum& sum, std::size_t index, const Model& model, LinearOverlay& out);

// part(0) .. part(count - 1), each a Status, shared among the team (null: by this thread). The
// error of the first that has one; "no memory for .." what `name` calls one that ran out of it.
template <class Part, class Name>
Status run_parts(ThreadTeam* team, std::size_t count, Part&& part, Name&& name) {
  std::vector<Status> done(count);
  const auto run = [&](std::int64_t begin, std::int64_t end, int) {
    for (auto index = static_cast<std::size_t>(begin); index < static_cast<std::size_t>(end);
         ++index) {
      try {
        done[index] = part(index);
      } catch (const std::bad_alloc&) {  // no thread of a team may throw
        done[index] = fail("no memory for tensor {} of an adapter", name(index));
      }
    }
  };
  if (team != nullptr)
    team->for_each(static_cast<std::int64_t>(count), 1, run);
  else
    run(0, static_cast<std::int64_t>(count), 0);
  for (Status& status : done) TRIMPOT_TRY_VOID(std::move(status));
  return {};
}

// Makes an overlay the layer's own.
void put_into(LinearOverlay&& from, Linear& linear);

}  // namespace trimpot
