// Writes a toy model for the command line tests: make_toy_model OUT.gguf [Q4_0|F16|wide|other-seed]
#include <cstdio>
#include <string>

#include "support/toy_model.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::string kind = argc > 2 ? argv[2] : "";
  trimpot::ToyOptions options;
  if (kind == "Q4_0")
    options.linear_types = trimpot::ToyOptions::all_linears(trimpot::ElementType::kQ4_0);
  if (kind == "F16")
    options.linear_types = trimpot::ToyOptions::all_linears(trimpot::ElementType::kF16);
  if (kind == "wide") {  // F16, with several groups of 128 in a row and the last one shorter
    options.linear_types = trimpot::ToyOptions::all_linears(trimpot::ElementType::kF16);
    options.hidden = 192;
    options.heads = 6;
    options.kv_heads = 3;
    options.head_dim = 32;
    options.feed_forward = 320;
  }
  if (kind == "other-seed") options.seed = 2;
  const trimpot::Status status = trimpot::toy_file(options).write(argv[1]);
  if (!status) std::fprintf(stderr, "%s\n", status.error().message.c_str());
  return status ? 0 : 1;
}
