#include "eval/gsm8k.h"

#include <algorithm>
#include <cctype>

#include "eval/json_rows.h"
#include "sys/mapped_file.h"

namespace trimpot {
namespace {

constexpr const char* kInvalid = "[invalid]";

// Length of -?[set]+ at the begin of `text`, 0 where there is none or the run of the set is
// shorter than `least`.
std::size_t match_number(std::string_view text, std::string_view set, std::size_t least) {
  const std::size_t sign = text.starts_with('-') ? 1 : 0;
  const std::size_t end = std::min(text.find_first_not_of(set, sign), text.size());
  return end - sign >= least ? end : 0;
}

std::string normalized(std::string_view text) {
  std::string out;
  for (const char c : text)
    if (c != ',' && c != '$') out += c;
  if (const std::size_t mark = out.rfind("#### "); mark != std::string::npos)
    out.erase(0, mark + 5);
  if (out.ends_with('.')) out.pop_back();
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

}  // namespace

Result<std::vector<MathItem>> read_gsm8k(const std::string& path) {
  TRIMPOT_TRY(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  return parse_gsm8k(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

Result<std::vector<MathItem>> parse_gsm8k(const std::string& path, std::string_view text) {
  std::vector<MathItem> items;
  TRIMPOT_TRY_VOID(for_each_row(path, text, [&](const JsonRow& row) -> Status {
    MathItem item;
    item.line = row.line;
    TRIMPOT_TRY(item.question, string_field(row.object, row.place, "question"));
    TRIMPOT_TRY(item.answer, string_field(row.object, row.place, "answer"));
    items.push_back(std::move(item));
    return {};
  }));
  return items;
}

std::string gsm8k_prompt(const std::vector<MathItem>& items, std::size_t index,
                         const std::vector<MathItem>& examples, std::int64_t count) {
  std::string prompt;
  for (std::size_t i = 0; i < examples.size() && count > 0; ++i) {
    if (&examples == &items && i == index) continue;
    prompt += "Question: " + examples[i].question + "\nAnswer: " + examples[i].answer + "\n\n";
    --count;
  }
  return prompt + "Question: " + items[index].question + "\nAnswer:";
}

std::string strict_number(std::string_view text) {
  constexpr std::string_view kMark = "#### ";
  for (std::size_t at = text.find(kMark); at != std::string_view::npos;
       at = text.find(kMark, at + 1)) {
    const std::string_view rest = text.substr(at + kMark.size());
    if (const std::size_t length = match_number(rest, "0123456789.,", 1); length > 0)
      return std::string(rest.substr(0, length));
  }
  return kInvalid;
}

std::string flexible_number(std::string_view text) {
  std::string last = kInvalid;
  while (!text.empty()) {
    std::size_t length = match_number(text, "$0123456789.,", 2);
    if (length == 0) length = match_number(text, "0123456789", 1);
    if (length > 0) last = text.substr(0, length);
    text.remove_prefix(std::max<std::size_t>(1, length));
  }
  return last;
}

bool same_number(std::string_view found, std::string_view expected) {
  return normalized(found) == normalized(expected);
}

}  // namespace trimpot
