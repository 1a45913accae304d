// GGUF files with the small vocabulary of golden.json, written anew with changes for each test.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/gguf/gguf.h"
#include "text/tokenizer.h"

namespace trimpot {

inline const nlohmann::json& golden() {
  static const nlohmann::json data = nlohmann::json::parse(std::ifstream(TRIMPOT_TEXT_GOLDEN));
  return data;
}

struct VocabularyFile {
  std::string model = "gpt2";
  std::optional<std::string> pre = "smollm";
  std::vector<std::string> tokens = golden()["tokens"];
  std::optional<std::vector<std::int32_t>> types = golden()["token_type"];
  std::optional<std::vector<std::string>> merges = golden()["merges"];
  std::optional<std::uint32_t> bos = 0, eos = 0, pad;
  std::optional<bool> add_bos, add_eos;
  std::optional<std::string> chat_template;

  Result<gguf::File> write_and_open() const {
    gguf::Writer writer;
    writer.set_string("general.architecture", "llama");
    writer.set_string("tokenizer.ggml.model", model);
    if (pre) writer.set_string("tokenizer.ggml.pre", *pre);
    writer.set_strings("tokenizer.ggml.tokens", tokens);
    if (types) writer.set_int32s("tokenizer.ggml.token_type", *types);
    if (merges) writer.set_strings("tokenizer.ggml.merges", *merges);
    if (bos) writer.set_uint32("tokenizer.ggml.bos_token_id", *bos);
    if (eos) writer.set_uint32("tokenizer.ggml.eos_token_id", *eos);
    if (pad) writer.set_uint32("tokenizer.ggml.padding_token_id", *pad);
    if (add_bos) writer.set_bool("tokenizer.ggml.add_bos_token", *add_bos);
    if (add_eos) writer.set_bool("tokenizer.ggml.add_eos_token", *add_eos);
    if (chat_template) writer.set_string("tokenizer.chat_template", *chat_template);
    // A name of its own: ctest runs the tests of one program side by side.
    const std::string path =
        testing::TempDir() + "trimpot-vocabulary-" + std::to_string(getpid()) + ".gguf";
    TRIMPOT_TRY_VOID(writer.write(path));
    auto file = gguf::File::open(path);
    std::remove(path.c_str());  // the mapping stays
    return file;
  }

  Result<Tokenizer> load() const {
    TRIMPOT_TRY(const gguf::File file, write_and_open());
    return Tokenizer::from_gguf(file);
  }
};

}  // namespace trimpot
