// What this machine can do at most, measured with the same threads and in the same run as what is
// compared with it.
#pragma once

#include <cstddef>

#include "kernels/ops.h"
#include "model/work.h"

namespace trimpot::cli {

// All threads together; operations are multiply-adds per second.
struct Roof {
  double read_bytes = 0;  // per second, of a buffer as large as what is read
  double f32 = 0, rounded = 0, int8 = 0;
  // Least seconds for this work: reading overlaps with computing.
  double seconds(const Work& work) const;
};

// Bytes per second of reading a buffer over and over, each thread its own part: median of 7.
double read_rate(Compute& compute, std::size_t bytes);
// Multiply-adds per second; rounded is 0 where the kernels have no such products.
struct Peaks {
  double f32 = 0, rounded = 0, int8 = 0;
};
Peaks peak_rates(Compute& compute);
// Seconds of handing an empty piece of work to every thread and waiting for all.
double join_seconds(Compute& compute);

Roof measure_roof(Compute& compute, std::size_t bytes);

}  // namespace trimpot::cli
