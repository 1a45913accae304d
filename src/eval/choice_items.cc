#include "eval/choice_items.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "data/json_pieces.h"
#include "eval/choice_csv.h"
#include "eval/json_rows.h"
#include "eval/python_text.h"
#include "sys/mapped_file.h"

namespace trimpot {
namespace {

using Json = nlohmann::ordered_json;

void set_choices(ChoiceItem& item, std::vector<std::string> endings, std::size_t gold) {
  item.right.assign(endings.size(), 0);
  item.right[gold] = 1;
  item.choices = endings;
  item.endings = std::move(endings);
}

// What the WikiHow part of HellaSwag needs: marks in brackets taken out, headings ended by a dot.
std::string without_brackets(std::string_view raw) {
  const std::string text = replace_all(strip(raw), " [title]", ". ");
  std::string out;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '[') {
      const std::size_t close = text.find_first_of("]\n", at);
      if (close != std::string::npos && text[close] == ']') {
        at = close;
        continue;
      }
    }
    out += text[at];
  }
  return replace_all(out, "  ", " ");
}

// A number, or a number in a string, as both are found.
Result<std::size_t> label_field(const Json& object, const std::string& place, const char* name,
                                std::size_t choices) {
  const auto found = object.find(name);
  std::size_t label = choices;
  if (found != object.end() && found->is_number_unsigned()) {
    label = found->get<std::size_t>();
  } else if (found != object.end() && found->is_string()) {
    const auto& text = found->get_ref<const std::string&>();
    const auto end = std::from_chars(text.data(), text.data() + text.size(), label);
    if (end.ec != std::errc() || end.ptr != text.data() + text.size()) label = choices;
  }
  if (label >= choices)
    return fail(
        "{}: field \"{}\" must be the number of the right choice, 0 to {}; use a split "
        "that has labels",
        place, name, choices - 1);
  return label;
}

Result<ChoiceItem> hellaswag_item(const JsonRow& row) {
  TRIMPOT_TRY(const std::string activity, string_field(row.object, row.place, "activity_label"));
  TRIMPOT_TRY(const std::string ctx_a, string_field(row.object, row.place, "ctx_a"));
  TRIMPOT_TRY(const std::string ctx_b, string_field(row.object, row.place, "ctx_b"));
  TRIMPOT_TRY(std::vector<std::string> endings, strings_field(row.object, row.place, "endings"));
  if (endings.empty()) return fail("{}: field \"endings\" is an empty list", row.place);
  TRIMPOT_TRY(const std::size_t gold, label_field(row.object, row.place, "label", endings.size()));
  ChoiceItem item;
  item.question = activity + ": " + ctx_a + " " + ctx_b;
  item.contexts = {without_brackets(activity + ": " + ctx_a + " " + capitalize(ctx_b))};
  for (std::string& ending : endings) ending = without_brackets(ending);
  set_choices(item, std::move(endings), gold);
  return item;
}

// ARC and OpenBookQA have one format.
Result<ChoiceItem> stem_item(const JsonRow& row, bool arc) {
  TRIMPOT_TRY(const Json question, object_field(row.object, row.place, "question"));
  TRIMPOT_TRY(const std::string stem, string_field(question, row.place, "stem"));
  TRIMPOT_TRY(const std::string key, string_field(row.object, row.place, "answerKey"));
  const auto list = question.find("choices");
  if (list == question.end() || !list->is_array())
    return fail("{}: field \"choices\" of \"question\" must be a list", row.place);
  std::vector<std::string> endings;
  std::optional<std::size_t> gold;
  for (const Json& entry : *list) {
    if (!entry.is_object())
      return fail("{}: an entry of \"choices\" is {}; an object is expected", row.place,
                  entry.type_name());
    TRIMPOT_TRY(const std::string label, string_field(entry, row.place, "label"));
    if (!gold && label == strip(key)) gold = endings.size();
    TRIMPOT_TRY(std::string text, string_field(entry, row.place, "text"));
    endings.push_back(std::move(text));
  }
  if (!gold)
    return fail("{}: field \"answerKey\" names none of the choices; use a split that has answers",
                row.place);
  ChoiceItem item;
  item.question = stem;
  item.contexts = {arc ? "Question: " + stem + "\nAnswer:" : stem};
  set_choices(item, std::move(endings), *gold);
  return item;
}

Result<ChoiceItem> truthful_item(const JsonRow& row, const char* targets_name, bool one_right) {
  TRIMPOT_TRY(const std::string question, string_field(row.object, row.place, "question"));
  TRIMPOT_TRY(const Json targets, object_field(row.object, row.place, targets_name));
  ChoiceItem item;
  item.question = question;
  item.contexts = {"Q: " + question + "\nA:"};
  for (const auto& [answer, label] : targets.items()) {
    if (!label.is_number_integer() || (label != 0 && label != 1))
      return fail("{}: every value in \"{}\" must be 0 or 1", row.place, targets_name);
    item.endings.push_back(answer);
    item.right.push_back(label == 1);
  }
  item.choices = item.endings;
  const auto right = std::count(item.right.begin(), item.right.end(), 1);
  if (right == 0 || (one_right && right > 1))
    return fail("{}: \"{}\" has {} right answers; {} is expected", row.place, targets_name, right,
                one_right ? "one" : "at least one");
  return item;
}

Result<ChoiceItem> winogrande_item(const JsonRow& row) {
  TRIMPOT_TRY(const std::string sentence, string_field(row.object, row.place, "sentence"));
  TRIMPOT_TRY(const std::string option1, string_field(row.object, row.place, "option1"));
  TRIMPOT_TRY(const std::string option2, string_field(row.object, row.place, "option2"));
  TRIMPOT_TRY(const std::string answer, string_field(row.object, row.place, "answer"));
  if (answer != "1" && answer != "2")
    return fail("{}: field \"answer\" must be \"1\" or \"2\"; use a split that has answers",
                row.place);
  const std::size_t blank = sentence.find('_');
  if (blank == std::string::npos)
    return fail("{}: field \"sentence\" has no _ for the options", row.place);
  // The options make two contexts; what follows them is scored (partial evaluation: Trinh and Le).
  const std::string rest(strip(std::string_view(sentence).substr(blank + 1)));
  ChoiceItem item;
  item.question = sentence;
  item.contexts = {sentence.substr(0, blank) + option1, sentence.substr(0, blank) + option2};
  set_choices(item, {rest, rest}, answer == "1" ? 0 : 1);
  item.choices = {option1, option2};
  return item;
}

Result<ChoiceItem> json_item(ChoiceTask task, const JsonRow& row) {
  switch (task) {
    case ChoiceTask::kHellaswag:
      return hellaswag_item(row);
    case ChoiceTask::kTruthfulMc1:
      return truthful_item(row, "mc1_targets", true);
    case ChoiceTask::kTruthfulMc2:
      return truthful_item(row, "mc2_targets", false);
    case ChoiceTask::kWinogrande:
      return winogrande_item(row);
    case ChoiceTask::kOpenBook:
      return stem_item(row, false);
    default:
      return stem_item(row, true);
  }
}

Result<ChoiceFile> parse_six_lines(const std::string& path, std::string_view text) {
  if (find_invalid_utf8(text)) return fail("{}: the text is not UTF-8; save it as UTF-8", path);
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  while (!lines.empty() && strip(lines.back()).empty()) lines.pop_back();
  if (lines.empty() || lines.size() % 6 != 0)
    return fail(
        "{}: {} lines; six for each item are expected (context, number of the right "
        "ending, four endings), or JSON Lines",
        path, lines.size());
  ChoiceFile file;
  for (std::size_t i = 0; i < lines.size(); i += 6) {
    const std::string_view number = strip(lines[i + 1]);
    if (number.size() != 1 || number[0] < '0' || number[0] > '3')
      return fail("{}:{}: the number of the right ending, 0 to 3, is expected", path, i + 2);
    ChoiceItem item;
    item.line = i + 1;
    item.question = lines[i];
    item.contexts = {item.question};
    set_choices(item,
                {lines.begin() + static_cast<std::ptrdiff_t>(i) + 2,
                 lines.begin() + static_cast<std::ptrdiff_t>(i) + 6},
                static_cast<std::size_t>(number[0] - '0'));
    file.items.push_back(std::move(item));
  }
  return file;
}

// "high_school_physics_test.csv" -> "high school physics"
std::string subject_of(const std::string& path) {
  std::string name = path.substr(path.find_last_of('/') + 1);
  if (name.ends_with(".csv")) name.resize(name.size() - 4);
  for (const std::string_view split : {"_test", "_dev", "_val"})
    if (name.ends_with(split)) {
      name.resize(name.size() - split.size());
      break;
    }
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

Result<ChoiceFile> parse_mmlu(const std::string& path, std::string_view text) {
  if (find_invalid_utf8(text)) return fail("{}: the text is not UTF-8; save it as UTF-8", path);
  TRIMPOT_TRY(const std::vector<CsvRow> rows, parse_csv(path, text));
  ChoiceFile file;
  // The header of Hendrycks et al. 2020, appendix B.
  file.header = "The following are multiple choice questions (with answers) about " +
                subject_of(path) + ".\n\n";
  for (const CsvRow& row : rows) {
    const std::vector<std::string>& f = row.fields;
    if (f.size() != 6)
      return fail("{}:{}: {} fields; question, four choices and the right letter are expected",
                  path, row.line, f.size());
    const std::string_view letter = strip(f[5]);
    if (letter.size() != 1 || letter[0] < 'A' || letter[0] > 'D')
      return fail("{}:{}: the last field must be A, B, C or D", path, row.line);
    ChoiceItem item;
    item.line = row.line;
    item.question = strip(f[0]);
    item.contexts = {fmt::format("{}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:", strip(f[0]), f[1], f[2],
                                 f[3], f[4])};
    set_choices(item, {"A", "B", "C", "D"}, static_cast<std::size_t>(letter[0] - 'A'));
    item.choices.assign(f.begin() + 1, f.begin() + 5);
    file.items.push_back(std::move(item));
  }
  if (file.items.empty()) return fail("{}: the file has no rows", path);
  return file;
}

}  // namespace

const std::vector<std::string>& choice_task_names() {
  static const std::vector<std::string> names{
      "hellaswag", "arc", "mmlu", "truthfulqa-mc1", "truthfulqa-mc2", "winogrande", "openbookqa"};
  return names;
}

Result<ChoiceTask> find_choice_task(std::string_view name) {
  const auto& names = choice_task_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return fail("no task {}; known are {}", name, fmt::join(names, ", "));
  return static_cast<ChoiceTask>(found - names.begin());
}

std::size_t ChoiceItem::gold() const {
  return static_cast<std::size_t>(std::find(right.begin(), right.end(), 1) - right.begin());
}

Result<ChoiceFile> read_choices(ChoiceTask task, const std::string& path) {
  TRIMPOT_TRY(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  return parse_choices(task, path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

Result<ChoiceFile> parse_choices(ChoiceTask task, const std::string& path, std::string_view text) {
  if (task == ChoiceTask::kMmlu) return parse_mmlu(path, text);
  const std::size_t first = text.find_first_not_of(" \t\r\n\xef\xbb\xbf");
  if (task == ChoiceTask::kHellaswag && first != std::string_view::npos && text[first] != '{' &&
      text[first] != '[')
    return parse_six_lines(path, text);
  ChoiceFile file;
  TRIMPOT_TRY_VOID(for_each_row(path, text, [&](const JsonRow& row) -> Status {
    TRIMPOT_TRY(ChoiceItem item, json_item(task, row));
    item.line = row.line;
    file.items.push_back(std::move(item));
    return {};
  }));
  return file;
}

}  // namespace trimpot
