// A toy model whose tokens are bytes, and its tokenizer.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "io/test_files.h"
#include "support/compare.h"
#include "support/toy_model.h"
#include "text/tokenizer.h"

namespace trimpot {

class ToyText : public testing::Test {
 protected:
  explicit ToyText(std::int64_t context) : context_(context) {}
  void SetUp() override {
    ToyOptions options;
    options.gain = 2;
    options.context = context_;
    auto toy = load_toy(toy_file(options), folder_.file("toy.gguf"));
    ASSERT_TRUE(toy) << toy.error().message;
    model_ = std::move(toy->model);
    auto tokenizer = Tokenizer::from_gguf(toy->file);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    tokenizer_.emplace(std::move(*tokenizer));
  }
  const TempFolder folder_;
  std::unique_ptr<Model> model_;
  std::optional<Tokenizer> tokenizer_;

 private:
  const std::int64_t context_;
};

}  // namespace trimpot
