#include "eval/choice_csv.h"

#include <algorithm>

namespace trimpot {

Result<std::vector<CsvRow>> parse_csv(const std::string& path, std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // byte order mark
  std::vector<CsvRow> rows;
  std::size_t line = 1;
  for (std::size_t at = 0; at < text.size();) {
    CsvRow row;
    row.line = line;
    bool more = true;  // fields of this row
    while (more) {
      std::string field;
      if (at < text.size() && text[at] == '"') {
        while (true) {
          const std::size_t quote = text.find('"', at + 1);
          if (quote == std::string_view::npos)
            return fail("{}:{}: a quote is opened in this row and never closed", path, row.line);
          const std::string_view part = text.substr(at + 1, quote - at - 1);
          field += part;
          line += static_cast<std::size_t>(std::count(part.begin(), part.end(), '\n'));
          at = quote + 1;
          if (at >= text.size() || text[at] != '"') break;
          field += '"';  // a doubled one
        }
        if (at < text.size() && text[at] != ',' && text[at] != '\n' && text[at] != '\r')
          return fail("{}:{}: text behind a closing quote; a quote inside a field is doubled", path,
                      line);
      } else {
        const std::size_t end = std::min(text.find_first_of(",\n", at), text.size());
        field = text.substr(at, end - at);
        if (field.ends_with('\r')) field.pop_back();
        at = end;
      }
      if (at < text.size() && text[at] == '\r') ++at;
      more = at < text.size() && text[at] == ',';
      if (at < text.size()) {
        if (text[at] == '\n') ++line;
        ++at;
      }
      row.fields.push_back(std::move(field));
    }
    if (row.fields.size() > 1 || !row.fields[0].empty()) rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace trimpot
