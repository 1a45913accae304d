// Runs the tokenizer for check_against_tokenizers.py.
//   text_check encode MODEL < lines    {"text": ..., "parse_special": bool} -> {"ids", "decoded"}
//   text_check chat MODEL < lines      {"messages": [{"role", "content"}], "prompt": bool}
//                                      -> {"text", "ids", "learned"}
//   text_check time MODEL FILE         seconds per encode() of the file, best of ten
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace {

using nlohmann::json;
using trimpot::ChatTemplate;
using trimpot::Tokenizer;

int complain(const trimpot::Error& error) {
  fmt::print(stderr, "{}\n", error.message);
  return 1;
}

int encode_lines(const Tokenizer& tokenizer) {
  for (std::string line; std::getline(std::cin, line);) {
    const json in = json::parse(line);
    const auto text = in["text"].get<std::string>();
    const auto ids = tokenizer.encode(text, {.parse_special = in["parse_special"].get<bool>()});
    json out{{"ids", ids}, {"decoded", tokenizer.decode(ids)}};
    std::cout << out.dump(-1, ' ', true, json::error_handler_t::replace) << "\n";
  }
  return 0;
}

int chat_lines(const Tokenizer& tokenizer, const ChatTemplate& chat) {
  for (std::string line; std::getline(std::cin, line);) {
    const json in = json::parse(line);
    std::vector<trimpot::Message> messages;
    for (const json& message : in["messages"])
      messages.push_back({message["role"], message["content"]});
    const bool prompt = in["prompt"].get<bool>();
    const auto encoded = chat.encode(tokenizer, messages, prompt);
    if (!encoded) return complain(encoded.error());
    json out{{"text", chat.render(messages, prompt)},
             {"ids", encoded->ids},
             {"learned", encoded->learned}};
    std::cout << out.dump(-1, ' ', true) << "\n";
  }
  return 0;
}

int time_file(const Tokenizer& tokenizer, const char* path) {
  std::stringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  const std::string text = content.str();
  double best = 1e9;
  std::size_t count = 0;
  for (int round = 0; round < 10; ++round) {
    const auto start = std::chrono::steady_clock::now();
    count = tokenizer.encode(text).size();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  fmt::print("{} bytes, {} tokens, {:.4f} s\n", text.size(), count, best);
  return 0;
}

int run(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: text_check encode|chat|time MODEL [FILE]\n");
    return 2;
  }
  const std::string mode = argv[1];
  const auto file = trimpot::gguf::File::open(argv[2]);
  if (!file) return complain(file.error());
  const auto tokenizer = Tokenizer::from_gguf(*file);
  if (!tokenizer) return complain(tokenizer.error());
  if (mode == "encode") return encode_lines(*tokenizer);
  if (mode == "time" && argc == 4) return time_file(*tokenizer, argv[3]);
  const auto chat = ChatTemplate::from_gguf(*file);
  if (!chat) return complain(chat.error());
  return chat_lines(*tokenizer, *chat);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "text_check: {}\n", error.what());
    return 1;
  }
}
