#include "cli/bench/roof.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "sys/aligned_buffer.h"

namespace trimpot::cli {
namespace {

constexpr int kRounds = 7;
constexpr double kRoundSeconds = 0.02;

template <typename Body>
double seconds_of(Body&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Median seconds of a body that takes a number of repeats, per repeat; rounds last about 20 ms.
template <typename Body>
double median_seconds(Body&& body) {
  std::int64_t repeats = 1;
  double seconds = seconds_of([&] { body(repeats); });
  while (seconds < kRoundSeconds / 2 && repeats < (std::int64_t{1} << 40)) {
    repeats *= 2;
    seconds = seconds_of([&] { body(repeats); });
  }
  std::array<double, kRounds> rounds;
  for (double& round : rounds) round = seconds_of([&] { body(repeats); });
  std::sort(rounds.begin(), rounds.end());
  return rounds[kRounds / 2] / static_cast<double>(repeats);
}

// Keeps the compiler from leaving out what nobody reads.
void keep(float value) { asm volatile("" : : "x"(value)); }

double peak_rate(Compute& compute, const PeakLoop& loop) {
  if (loop.run == nullptr) return 0;
  constexpr std::int64_t kInner = 1024;
  const double seconds = median_seconds([&](std::int64_t repeats) {
    compute.team.for_each(compute.team.size(), 1, [&](std::int64_t, std::int64_t, int) {
      for (std::int64_t i = 0; i < repeats; ++i) keep(loop.run(kInner, 1.0f));
    });
  });
  return static_cast<double>(loop.macs_per_round * kInner * compute.team.size()) / seconds;
}

}  // namespace

double Roof::seconds(const Work& work) const {
  double computing = work.int8_macs / int8 + work.f32_macs / f32;
  if (work.rounded_macs > 0) computing += work.rounded_macs / rounded;
  return std::max(computing, work.bytes / read_bytes);
}

double read_rate(Compute& compute, std::size_t bytes) {
  const auto threads = static_cast<std::size_t>(compute.team.size());
  const std::size_t part = std::max<std::size_t>(1, bytes / threads / 4096) * 4096;
  AlignedBuffer<std::uint8_t> memory(part * threads);
  std::memset(memory.data(), 1, memory.size());
  const double seconds = median_seconds([&](std::int64_t repeats) {
    compute.team.for_each(compute.team.size(), 1, [&](std::int64_t index, std::int64_t, int) {
      for (std::int64_t i = 0; i < repeats; ++i)
        keep(compute.kernels.read_memory(memory.data() + static_cast<std::size_t>(index) * part,
                                         static_cast<std::int64_t>(part)));
    });
  });
  return static_cast<double>(part * threads) / seconds;
}

Peaks peak_rates(Compute& compute) {
  const Kernels& k = compute.kernels;
  return {peak_rate(compute, k.peak_f32), peak_rate(compute, k.peak_rounded),
          peak_rate(compute, k.peak_int8)};
}

double join_seconds(Compute& compute) {
  return median_seconds([&](std::int64_t repeats) {
    for (std::int64_t i = 0; i < repeats; ++i)
      compute.team.for_each(compute.team.size(), 1, [](std::int64_t, std::int64_t, int) {});
  });
}

Roof measure_roof(Compute& compute, std::size_t bytes) {
  const Peaks peaks = peak_rates(compute);
  return {read_rate(compute, bytes), peaks.f32, peaks.rounded, peaks.int8};
}

}  // namespace trimpot::cli
