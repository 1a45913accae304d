#include "text/chatml_matcher.h"

#include <algorithm>
#include <vector>

#include "io/printable.h"

namespace trimpot::text {
namespace {

// Inside and outside of Jinja's tags. Literal text outside becomes the same statement as a string
// inside {{ }}: kOutput, kString, kOutputEnd.
enum class Kind { kBlock, kBlockEnd, kOutput, kOutputEnd, kName, kNumber, kString, kSymbol, kEnd };

struct Token {
  Kind kind;
  std::string text;
};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c);
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {
    if (source_.ends_with('\n')) source_.remove_suffix(1);  // Jinja's keep_trailing_newline = false
  }

  Result<std::vector<Token>> run() {
    if (source_.find('\r') != std::string_view::npos) return fail("it has carriage returns");
    bool strip_left = false;  // the tag before ended in -%} or -}}
    bool after_block = false;
    while (position_ < source_.size()) {
      std::size_t open = position_;
      while (open < source_.size() && !tag_at(open)) ++open;
      std::string_view literal = source_.substr(position_, open - position_);
      if (after_block && !strip_left && literal.starts_with('\n')) literal.remove_prefix(1);
      if (strip_left)
        while (!literal.empty() && is_space(literal.front())) literal.remove_prefix(1);
      if (open == source_.size()) {
        add_literal(literal);
        break;
      }
      const bool block = source_[open + 1] == '%';
      if (source_[open + 1] == '#') return fail("it has a comment");
      position_ = open + 2;
      const char mark = position_ < source_.size() ? source_[position_] : '\0';
      if (mark == '+') return fail("it has a tag with a plus sign");
      if (mark == '-') {
        ++position_;
        while (!literal.empty() && is_space(literal.back())) literal.remove_suffix(1);
      } else if (block) {
        strip_indentation(literal, open);
      }
      add_literal(literal);
      TRIMPOT_TRY(strip_left, read_tag(block));
      after_block = block;
    }
    tokens_.push_back({Kind::kEnd, ""});
    return std::move(tokens_);
  }

 private:
  bool tag_at(std::size_t at) const {
    const std::string_view two = source_.substr(at, 2);
    return two == "{{" || two == "{%" || two == "{#";
  }

  // lstrip_blocks: blanks between the start of a line and a block go.
  void strip_indentation(std::string_view& literal, std::size_t open) const {
    std::size_t line = open;
    while (line > 0 && (source_[line - 1] == ' ' || source_[line - 1] == '\t')) --line;
    if (line > 0 && source_[line - 1] != '\n') return;
    while (!literal.empty() && (literal.back() == ' ' || literal.back() == '\t'))
      literal.remove_suffix(1);
  }

  void add_literal(std::string_view literal) {
    if (literal.empty()) return;
    tokens_.push_back({Kind::kOutput, ""});
    tokens_.push_back({Kind::kString, std::string(literal)});
    tokens_.push_back({Kind::kOutputEnd, ""});
  }

  // Returns whether the tag ends with a minus sign.
  Result<bool> read_tag(bool block) {
    tokens_.push_back({block ? Kind::kBlock : Kind::kOutput, ""});
    const std::string_view close = block ? "%}" : "}}";
    for (;;) {
      while (position_ < source_.size() && is_space(source_[position_])) ++position_;
      if (position_ >= source_.size()) return fail("a tag is not closed");
      const bool minus = source_[position_] == '-';
      if (source_.substr(position_ + (minus ? 1 : 0), 2) == close) {
        position_ += minus ? 3 : 2;
        tokens_.push_back({block ? Kind::kBlockEnd : Kind::kOutputEnd, ""});
        return minus;
      }
      TRIMPOT_TRY_VOID(read_token());
    }
  }

  Status read_token() {
    const char first = source_[position_];
    if (first == '\'' || first == '"') return read_string(first);
    std::size_t end = position_;
    if (is_name(first)) {
      const bool number = is_digit(first);
      while (end < source_.size() && is_name(source_[end])) ++end;
      tokens_.push_back({number ? Kind::kNumber : Kind::kName,
                         std::string(source_.substr(position_, end - position_))});
    } else {
      end += source_.substr(position_, 2) == "!=" || source_.substr(position_, 2) == "==" ? 2 : 1;
      tokens_.push_back({Kind::kSymbol, std::string(source_.substr(position_, end - position_))});
    }
    position_ = end;
    return {};
  }

  Status read_string(char quote) {
    std::string text;
    for (++position_; position_ < source_.size() && source_[position_] != quote; ++position_) {
      char c = source_[position_];
      if (c == '\\') {
        if (++position_ == source_.size()) break;
        c = source_[position_];
        if (c == 'n') {
          c = '\n';
        } else if (c == 't') {
          c = '\t';
        } else if (c != '\\' && c != '\'' && c != '"') {
          return fail("it has the escape \\{} in a string", printable({&c, 1}));
        }
      }
      text.push_back(c);
    }
    if (position_ >= source_.size()) return fail("a string is not closed");
    ++position_;
    tokens_.push_back({Kind::kString, std::move(text)});
    return {};
  }

  std::string_view source_;
  std::size_t position_ = 0;
  std::vector<Token> tokens_;
};

// One piece of what an output statement prints.
struct Part {
  enum What { kText, kRole, kContent } what;
  std::string text;
  bool operator==(const Part&) const = default;
};
using Parts = std::vector<Part>;

void append(Parts& parts, Part part) {
  if (part.what == Part::kText && part.text.empty()) return;
  if (part.what == Part::kText && !parts.empty() && parts.back().what == Part::kText)
    parts.back().text += part.text;
  else
    parts.push_back(std::move(part));
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Result<ChatMl> run() {
    ChatMl chat;
    if (accept_block("if not add_generation_prompt is defined")) {
      TRIMPOT_TRY_VOID(expect_block("set add_generation_prompt = false"));
      TRIMPOT_TRY_VOID(expect_block("endif"));
    }
    TRIMPOT_TRY_VOID(expect_block("for message in messages"));
    if (accept_block("if loop . first and messages [ 0 ] [ 'role' ] != 'system'") ||
        accept_block("if loop . first and messages [ 0 ] . role != 'system'")) {
      TRIMPOT_TRY(const Parts parts, outputs());
      TRIMPOT_TRY(chat.default_system, default_system(parts));
      TRIMPOT_TRY_VOID(expect_block("endif"));
    }
    TRIMPOT_TRY(const Parts message, outputs());
    if (message != Parts{{Part::kText, "<|im_start|>"},
                         {Part::kRole, ""},
                         {Part::kText, "\n"},
                         {Part::kContent, ""},
                         {Part::kText, "<|im_end|>\n"}})
      return fail("it does not print a message as ChatML does");
    TRIMPOT_TRY_VOID(expect_block("endfor"));
    TRIMPOT_TRY_VOID(expect_block("if add_generation_prompt"));
    TRIMPOT_TRY(const Parts prompt, outputs());
    if (prompt != Parts{{Part::kText, "<|im_start|>assistant\n"}})
      return fail("it does not ask for an answer as ChatML does");
    TRIMPOT_TRY_VOID(expect_block("endif"));
    if (peek().kind != Kind::kEnd) return fail("something follows the generation prompt");
    return chat;
  }

 private:
  const Token& peek(std::size_t ahead = 0) const {
    return tokens_[std::min(position_ + ahead, tokens_.size() - 1)];
  }

  // Spells a token as the patterns above do.
  static std::string spelled(const Token& token) {
    return token.kind == Kind::kString ? "'" + token.text + "'" : token.text;
  }

  // Consumes the block {% pattern %}, tokens separated by single spaces, or nothing.
  bool accept_block(std::string_view pattern) {
    if (peek().kind != Kind::kBlock) return false;
    std::size_t ahead = 1;
    while (!pattern.empty()) {
      const std::string_view word = pattern.substr(0, pattern.find(' '));
      const Kind kind = peek(ahead).kind;
      const bool inside = kind == Kind::kName || kind == Kind::kNumber || kind == Kind::kString ||
                          kind == Kind::kSymbol;
      if (!inside || spelled(peek(ahead)) != word) return false;
      pattern.remove_prefix(std::min(word.size() + 1, pattern.size()));
      ++ahead;
    }
    if (peek(ahead).kind != Kind::kBlockEnd) return false;
    position_ += ahead + 1;
    return true;
  }

  Status expect_block(std::string_view pattern) {
    if (accept_block(pattern)) return {};
    return fail("\"{{% {} %}}\" was expected where it has \"{}\"", pattern, excerpt());
  }

  std::string excerpt() const {
    std::string text;
    for (std::size_t ahead = 0; ahead < 12 && peek(ahead).kind != Kind::kEnd; ++ahead) {
      const std::string word = spelled(peek(ahead));
      if (!word.empty()) text += (text.empty() ? "" : " ") + word;
    }
    return text.empty() ? "its end" : printable(text);
  }

  // All output statements up to the next block, as one list.
  Result<Parts> outputs() {
    Parts parts;
    while (peek().kind == Kind::kOutput) {
      ++position_;
      for (;;) {
        TRIMPOT_TRY(Part part, operand());
        append(parts, std::move(part));
        if (peek().kind == Kind::kOutputEnd) break;
        if (peek().kind != Kind::kSymbol || peek().text != "+")
          return fail("only + is understood in \"{}\"", excerpt());
        ++position_;
      }
      ++position_;
    }
    return parts;
  }

  Result<Part> operand() {
    if (peek().kind == Kind::kString) return Part{Part::kText, tokens_[position_++].text};
    std::string field;
    if (peek().kind == Kind::kName && peek().text == "message") {
      const bool brackets = peek(1).kind == Kind::kSymbol && peek(1).text == "[" &&
                            peek(2).kind == Kind::kString && peek(3).kind == Kind::kSymbol &&
                            peek(3).text == "]";
      const bool dot =
          peek(1).kind == Kind::kSymbol && peek(1).text == "." && peek(2).kind == Kind::kName;
      if (brackets || dot) field = peek(2).text;
      if (field == "role" || field == "content") {
        position_ += brackets ? 4 : 3;
        return Part{field == "role" ? Part::kRole : Part::kContent, ""};
      }
    }
    return fail("\"{}\" is not understood", excerpt());
  }

  static Result<std::optional<std::string>> default_system(const Parts& parts) {
    constexpr std::string_view kHead = "<|im_start|>system\n";
    constexpr std::string_view kTail = "<|im_end|>\n";
    if (parts.size() == 1 && parts[0].what == Part::kText) {
      std::string_view text = parts[0].text;
      if (text.size() >= kHead.size() + kTail.size() && text.starts_with(kHead) &&
          text.ends_with(kTail)) {
        text.remove_prefix(kHead.size());
        text.remove_suffix(kTail.size());
        if (text.find("<|") == std::string_view::npos) return std::optional(std::string(text));
      }
    }
    return fail("its default system message is not one ChatML message");
  }

  std::vector<Token> tokens_;
  std::size_t position_ = 0;
};

}  // namespace

Result<ChatMl> match_chatml(std::string_view source) {
  TRIMPOT_TRY(std::vector<Token> tokens, Lexer(source).run());
  return Parser(std::move(tokens)).run();
}

}  // namespace trimpot::text
