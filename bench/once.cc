// Runs one kernel a number of times, for tools that count instructions (instructions.py).
// usage: kernel_once --list | kernel_once ISA CASE TIMES
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bench/cases.h"

int main(int argc, char** argv) {
  using namespace trimpot;
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const bench::Case& one : bench::all_cases())
      std::printf("%.0f\t%s\n", one.macs, one.name.c_str());
    return 0;
  }
  if (argc != 4) {
    std::fprintf(stderr, "usage: kernel_once --list | kernel_once ISA CASE TIMES\n");
    return 2;
  }
  const auto kernels = kernels_by_name(argv[1]);
  if (!kernels) {
    std::fprintf(stderr, "kernel_once: %s\n", kernels.error().message.c_str());
    return 1;
  }
  for (const bench::Case& one : bench::all_cases()) {
    if (one.name != argv[2]) continue;
    const auto run = one.prepare(**kernels);
    if (!run) break;
    for (int i = std::atoi(argv[3]); i > 0; --i) run();
    return 0;
  }
  std::fprintf(stderr, "kernel_once: %s has no case \"%s\"; --list names them\n", argv[1], argv[2]);
  return 1;
}
