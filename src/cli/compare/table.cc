#include "cli/compare/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/markup.h"

namespace trimpot::cli {
namespace {

std::string two_places(double value) { return fmt::format("{:.2f}", value); }
std::string perplexity(double value) {  // of a broken model: any size
  return value < 1e5 ? fmt::format("{:.2f}", value) : fmt::format("{:.2e}", value);
}
std::string one_place(double value) { return fmt::format("{:.1f}", value); }
std::string whole(double value) { return fmt::format("{:.0f}", value); }
std::string megabytes(double bytes) { return fmt::format("{:.1f}", bytes / 1e6); }
std::string millions(double count) {
  return count < 1e5 ? fmt::format("{:.4f}", count / 1e6) : fmt::format("{:.2f}", count / 1e6);
}
std::string kilobytes(double bytes) { return fmt::format("{:.0f}", std::ceil(bytes / 1e3)); }

// A pipe would end a Markdown cell, a line end the table.
std::string escape_markdown(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '|' || c == '\\') result += '\\';
    result += c == '\n' || c == '\r' ? ' ' : c;
  }
  return result;
}

}  // namespace

const std::vector<Column>& all_columns() {
  static const std::vector<Column> columns{
      {"bits", "bits/weight", "bits of a linear layer's weight in the result, scales counted",
       two_places},
      {"base_bytes", "base MB", "size of the file that is tuned", megabytes},
      {"trainable", "tunable M", "numbers that learn, in millions", millions},
      {"tune_seconds", "tuning s", "time of the training steps", one_place},
      {"tune_peak_mb", "tuning peak MB", "peak resident memory of tuning, everything counted",
       whole},
      {"forward_ms", "forward ms", "one sequence of 512 tokens, loss included", whole},
      {"backward_ms", "backward ms", "the same, gradients and update", whole},
      {"step_ms", "step ms", "forward and backward", whole},
      {"quantize_seconds", "quantization s", "time of quantizing", one_place},
      {"quantize_peak_mb", "quantization peak MB",
       "peak resident memory of quantizing, everything counted", whole},
      {"storage_bytes", "storage MB", "model file and adapter", megabytes},
      {"decode_tps", "tokens/s", "generation, one token after another, 256 tokens", one_place},
      {"ppl_before", "ppl before", "perplexity before tuning", perplexity},
      {"ppl_after", "ppl after", "perplexity after tuning", perplexity},
      {"task_before", "task before %", "exact answers before tuning", one_place},
      {"task_after", "task after %", "exact answers after tuning", one_place},
      {"switch_bytes", "switch kB", "what differs between tasks: the adapter, or the whole file",
       kilobytes},
      {"switch_ms", "switch ms", "time to put another task into a loaded model", one_place}};
  return columns;
}

std::vector<std::string> column_ids() {
  std::vector<std::string> ids;
  for (const Column& column : all_columns()) ids.push_back(column.id);
  return ids;
}

std::vector<Column> shown_columns(const Table& table) {
  std::vector<Column> shown;
  for (const Column& column : all_columns()) {
    const bool wanted =
        table.columns.empty() ||
        std::find(table.columns.begin(), table.columns.end(), column.id) != table.columns.end();
    const bool has_value = std::any_of(table.rows.begin(), table.rows.end(),
                                       [&](const auto& row) { return !cell(row, column).empty(); });
    if (wanted && has_value) shown.push_back(column);
  }
  return shown;
}

std::string cell(const TableRow& row, const Column& column) {
  const auto found = row.values.find(column.id);
  if (found == row.values.end() || !found->is_number()) return "";
  return column.format(found->get<double>());
}

std::string markdown(const Table& table) {
  const std::vector<Column> columns = shown_columns(table);
  std::string text = fmt::format("## {}\n\n", escape_markdown(table.title));
  if (!table.about.empty()) text += table.about + "\n\n";
  text += "| method |";
  for (const Column& column : columns) text += fmt::format(" {} |", column.header);
  text += "\n|---|";
  for (std::size_t i = 0; i < columns.size(); ++i) text += "---:|";
  text += "\n";
  for (const TableRow& row : table.rows) {
    text += fmt::format("| {} |", escape_markdown(row.name));
    for (const Column& column : columns) text += fmt::format(" {} |", cell(row, column));
    text += "\n";
  }
  text += "\n";
  for (const TableRow& row : table.rows)
    if (!row.problem.empty())
      text += fmt::format("- {} failed: {}\n", escape_markdown(row.name), row.problem);
  return text;
}

std::string html(const Table& table) {
  const std::vector<Column> columns = shown_columns(table);
  std::string text = fmt::format(
      "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">\n<table>\n"
      "<caption>{0}</caption>\n<thead><tr><th scope=\"col\">method</th>",
      escape_markup(table.title));
  for (const Column& column : columns)
    text += fmt::format("<th scope=\"col\" title=\"{}\">{}</th>", escape_markup(column.help),
                        escape_markup(column.header));
  text += "</tr></thead>\n<tbody>\n";
  for (const TableRow& row : table.rows) {
    text += fmt::format("<tr><th scope=\"row\">{}</th>", escape_markup(row.name));
    for (const Column& column : columns)
      text += fmt::format("<td>{}</td>", escape_markup(cell(row, column)));
    text += "</tr>\n";
    if (!row.problem.empty())
      text += fmt::format("<tr class=\"failed\"><td colspan=\"{}\">failed: {}</td></tr>\n",
                          columns.size() + 1, escape_markup(row.problem));
  }
  return text + "</tbody>\n</table>\n</div>\n";
}

}  // namespace trimpot::cli
