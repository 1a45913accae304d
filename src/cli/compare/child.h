// A command of this program run as a process of its own, so that its memory and time are its own.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace trimpot::cli {

struct ChildResult {
  int exit_code = 0;       // 128 + signal if a signal ended it
  std::string output;      // stdout
  std::string last_lines;  // the end of stderr
  double seconds = 0;      // from start to end, by the clock
  double peak_rss_mb = 0;  // 10^6 bytes, as the system counted them for this process (wait4)
};

// Runs this program's own file with `arguments`, without a shell; stdin is empty. Errors: it cannot
// be started; Ctrl-C (watch_interrupts), after the child was killed. Should this process die, the
// child is killed, too.
Result<ChildResult> run_child(const std::vector<std::string>& arguments);

}  // namespace trimpot::cli
