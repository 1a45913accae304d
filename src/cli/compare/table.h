// The papers' table: one row per method, columns with a unit each, as Markdown or HTML.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace trimpot::cli {

struct Column {
  std::string id;      // key of the row's values in results.json
  std::string header;  // with the unit
  std::string help;
  std::string (*format)(double);
};

const std::vector<Column>& all_columns();
std::vector<std::string> column_ids();

struct TableRow {
  std::string name;
  nlohmann::ordered_json values;  // numbers by column id; what was not measured is missing
  std::string problem;            // why something is missing; empty: nothing failed
};

struct Table {
  std::string title, about;
  std::vector<std::string> columns;  // ids; empty: every column that has a value
  std::vector<TableRow> rows;
};

// The columns that are shown: those asked for (or all) of which some row has a value.
std::vector<Column> shown_columns(const Table& table);
// The cell's text; empty where there is no value.
std::string cell(const TableRow& row, const Column& column);

std::string markdown(const Table& table);
// <table> with caption, scope attributes, and problems in a row of their own.
std::string html(const Table& table);

}  // namespace trimpot::cli
