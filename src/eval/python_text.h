// Strings as Python's methods treat them: the tasks of lm-eval are defined by Python code.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trimpot {

// str.rstrip(), str.strip(): white space of Unicode.
std::string_view strip_right(std::string_view text);
std::string_view strip(std::string_view text);
// str.capitalize(): the first character in title case, all others in lower case. Characters whose
// other case is several characters keep theirs.
std::string capitalize(std::string_view text);
// len(str): code points; a byte that is not UTF-8 counts as one.
std::int64_t count_characters(std::string_view text);
// str.replace(): every occurrence from the left, without looking at what was put in.
std::string replace_all(std::string_view text, std::string_view what, std::string_view with);

}  // namespace trimpot
