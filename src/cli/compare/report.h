// What the steps gave, as tables and plots, and these as Markdown, JSON and one HTML page.
#pragma once

#include <string>
#include <vector>

#include "cli/compare/runner.h"
#include "cli/compare/table.h"

namespace trimpot::cli {

struct Picture {
  std::string name;  // of the file: "1-speed"
  std::string svg;
};

// A plan's table and plots.
struct Section {
  Table table;
  std::vector<Picture> pictures;
};

std::vector<Section> make_sections(const std::vector<Plan>& plans, const Schedule& schedule,
                                   const std::vector<StepResult>& results);

struct ReportHead {
  std::string command;  // as it can be typed again
  std::string model, data, text;
  std::string machine;  // kernels, cores
  bool mixed_builds = false;
};

std::string markdown(const ReportHead& head, const std::vector<Section>& sections);
std::string html(const ReportHead& head, const std::vector<Section>& sections);
// {"command", "model", "data", "text", "plans": [{"title", "about", "columns", "rows": [{"name",
// "values", "problem"?, "steps": [{"kind", "argv", "seconds", "peak_rss_mb", "result"}]}]}]}
nlohmann::ordered_json to_json(const ReportHead& head, const std::vector<Section>& sections,
                               const Schedule& schedule, const std::vector<StepResult>& results);

}  // namespace trimpot::cli
