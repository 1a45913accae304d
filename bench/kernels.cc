// Single kernels by format and instruction set, with Google Benchmark: multiply-adds and bytes of
// weights per second of one core, operands in the caches.
#include <benchmark/benchmark.h>

#include "bench/cases.h"

int main(int argc, char** argv) {
  using namespace trimpot;
  const std::vector<bench::Case> cases = bench::all_cases();
  for (const IsaInfo& isa : list_isas()) {
    if (!isa.usable) continue;
    for (const bench::Case& one : cases) {
      if (!one.prepare(*isa.kernels)) continue;
      const std::string name = one.name + "/" + isa.name;
      benchmark::RegisterBenchmark(
          name.c_str(), [&one, kernels = isa.kernels](benchmark::State& state) {
            const auto run = one.prepare(*kernels);
            for (auto _ : state) run();
            using benchmark::Counter;
            state.counters["macs"] = Counter(one.macs, Counter::kIsIterationInvariantRate);
            state.counters["bytes"] = Counter(one.bytes, Counter::kIsIterationInvariantRate);
          });
    }
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
