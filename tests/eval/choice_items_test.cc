// Published formats of multiple-choice data sets, the texts that are made of them, and every way to
// get them wrong. The rows are made up.
#include "eval/choice_items.h"

#include <gtest/gtest.h>

#include "eval/choice.h"
#include "eval/choice_csv.h"
#include "eval/python_text.h"

namespace trimpot {
namespace {

ChoiceFile must_parse(ChoiceTask task, std::string_view text, const std::string& path = "d.jsonl") {
  auto file = parse_choices(task, path, text);
  EXPECT_TRUE(file) << (file ? "" : file.error().message);
  return file ? std::move(*file) : ChoiceFile{};
}

void expect_error(ChoiceTask task, std::string_view text, std::string_view says,
                  const std::string& path = "d.jsonl") {
  const auto file = parse_choices(task, path, text);
  ASSERT_FALSE(file) << "no error for " << text;
  EXPECT_NE(file.error().message.find(says), std::string::npos) << file.error().message;
  EXPECT_EQ(file.error().message.find('\n'), std::string::npos);
  EXPECT_EQ(file.error().message.find(path), 0u) << file.error().message;
}

using Strings = std::vector<std::string>;

TEST(ChoiceItems, Hellaswag) {
  const ChoiceFile file = must_parse(
      ChoiceTask::kHellaswag,
      R"({"activity_label": " Baking", "ctx_a": "[header] How to bake [title] Mix  it.", )"
      R"("ctx_b": "the MAN [step] then", "label": "1", )"
      R"("endings": [" stirs [substeps] well. ", "eats [ it.", ""]})");
  ASSERT_EQ(file.items.size(), 1u);
  const ChoiceItem& item = file.items[0];
  // " [title]" becomes ". "; other brackets go; two blanks become one, once; ctx_b.capitalize().
  EXPECT_EQ(item.contexts, Strings{"Baking: How to bake. Mix it. The man then"});
  EXPECT_EQ(item.endings, (Strings{"stirs well.", "eats [ it.", ""}));
  EXPECT_EQ(item.gold(), 1u);
}

TEST(ChoiceItems, HellaswagAsSixLines) {
  const std::string text =
      "Roof: a man sits. he\r\n3\r\na  b\r\nc\r\nd\r\ne [f]\r\nNext\n0\n1\n2\n3\n4\n\n";
  const ChoiceFile file = must_parse(ChoiceTask::kHellaswag, text, "d.txt");
  ASSERT_EQ(file.items.size(), 2u);
  EXPECT_EQ(file.items[0].contexts, Strings{"Roof: a man sits. he"});
  EXPECT_EQ(file.items[0].endings, (Strings{"a  b", "c", "d", "e [f]"}));
  EXPECT_EQ(file.items[0].gold(), 3u);
  EXPECT_EQ(file.items[1].line, 7u);
  expect_error(ChoiceTask::kHellaswag, "a\n1\nb\nc\nd\n", "5 lines");
  expect_error(ChoiceTask::kHellaswag, "a\n4\nb\nc\nd\ne\n", "d.jsonl:2");
  expect_error(ChoiceTask::kHellaswag, "a\n1\nb\nc\nd\n\xff\n", "UTF-8");
  expect_error(ChoiceTask::kHellaswag, "", "no row");
}

constexpr const char* kArcRow =
    R"({"id": "x", "question": {"stem": "What is wet?", "choices": [{"text": "fire", "label": "1"},)"
    R"( {"text": "rain", "label": "2"}]}, "answerKey": "2"})";

TEST(ChoiceItems, ArcAndOpenBook) {
  const ChoiceFile arc = must_parse(ChoiceTask::kArc, std::string("\n") + kArcRow + "\n");
  ASSERT_EQ(arc.items.size(), 1u);
  EXPECT_EQ(arc.items[0].contexts, Strings{"Question: What is wet?\nAnswer:"});
  EXPECT_EQ(arc.items[0].endings, (Strings{"fire", "rain"}));
  EXPECT_EQ(arc.items[0].gold(), 1u);
  EXPECT_EQ(arc.items[0].line, 2u);
  const ChoiceFile open = must_parse(ChoiceTask::kOpenBook, kArcRow);
  EXPECT_EQ(open.items[0].contexts, Strings{"What is wet?"});
  std::string wrong = kArcRow;
  wrong.replace(wrong.rfind("\"2\""), 3, "\"7\"");
  expect_error(ChoiceTask::kArc, wrong, "answerKey");
  expect_error(ChoiceTask::kArc, R"({"question": "text", "answerKey": "A"})", "object is expected");
  expect_error(ChoiceTask::kArc, R"({"question": {"stem": "a"}, "answerKey": "A"})", "choices");
  expect_error(ChoiceTask::kArc, "[1]", "object is expected");
  expect_error(ChoiceTask::kArc, "{", "d.jsonl:1");
}

TEST(ChoiceItems, Mmlu) {
  const std::string text =
      "\" What, is \"\"it\"\"?\nTell. \",a,\"b, b\",,d,C\r\n\r\nnext,1,2,3,4,A";
  const ChoiceFile file = must_parse(ChoiceTask::kMmlu, text, "data/high_school_physics_dev.csv");
  EXPECT_EQ(file.header,
            "The following are multiple choice questions (with answers) about high school "
            "physics.\n\n");
  ASSERT_EQ(file.items.size(), 2u);
  EXPECT_EQ(file.items[0].contexts,
            Strings{"What, is \"it\"?\nTell.\nA. a\nB. b, b\nC. \nD. d\nAnswer:"});
  EXPECT_EQ(file.items[0].endings, (Strings{"A", "B", "C", "D"}));
  EXPECT_EQ(file.items[0].choices, (Strings{"a", "b, b", "", "d"}));
  EXPECT_EQ(file.items[0].gold(), 2u);
  EXPECT_EQ(file.items[1].line, 4u);
  expect_error(ChoiceTask::kMmlu, "q,a,b,c,A\n", "5 fields", "d.csv");
  expect_error(ChoiceTask::kMmlu, "q,a,b,c,d,E\n", "A, B, C or D", "d.csv");
  expect_error(ChoiceTask::kMmlu, "q,\"a,b,c,d,A\n", "never closed", "d.csv");
  expect_error(ChoiceTask::kMmlu, "q,\"a\"b,c,d,e,A\n", "closing quote", "d.csv");
  expect_error(ChoiceTask::kMmlu, "\n\n", "no rows", "d.csv");
}

TEST(ChoiceItems, TruthfulQa) {
  const std::string text =
      R"([{"question": "Is it?", "mc1_targets": {"Z": 0, "A": 1}, "mc2_targets": {"Z": 1, "A": 1, )"
      R"("M": 0}}])";
  const ChoiceFile one = must_parse(ChoiceTask::kTruthfulMc1, text, "d.json");
  EXPECT_EQ(one.items[0].contexts, Strings{"Q: Is it?\nA:"});
  EXPECT_EQ(one.items[0].endings, (Strings{"Z", "A"}));  // in the order of the file
  EXPECT_EQ(one.items[0].gold(), 1u);
  EXPECT_EQ(one.header, "");
  const ChoiceFile two = must_parse(ChoiceTask::kTruthfulMc2, text, "d.json");
  EXPECT_EQ(two.items[0].right, (std::vector<std::uint8_t>{1, 1, 0}));
  expect_error(ChoiceTask::kTruthfulMc1, R"([{"question": "a", "mc1_targets": {"b": 1, "c": 1}}])",
               "2 right answers");
  expect_error(ChoiceTask::kTruthfulMc2, R"([{"question": "a", "mc2_targets": {"b": 0}}])",
               "0 right answers");
  expect_error(ChoiceTask::kTruthfulMc2, R"([{"question": "a", "mc2_targets": {"b": 2}}])",
               "0 or 1");
}

TEST(ChoiceItems, Winogrande) {
  const ChoiceFile file = must_parse(
      ChoiceTask::kWinogrande,
      R"({"sentence": "Ann saw Bob and _  ran.", "option1": "Ann", "option2": "Bob", "answer": "2"})");
  const ChoiceItem& item = file.items[0];
  EXPECT_EQ(item.contexts, (Strings{"Ann saw Bob and Ann", "Ann saw Bob and Bob"}));
  EXPECT_EQ(item.endings, (Strings{"ran.", "ran."}));
  EXPECT_EQ(item.choices, (Strings{"Ann", "Bob"}));
  EXPECT_EQ(item.gold(), 1u);
  expect_error(ChoiceTask::kWinogrande,
               R"({"sentence": "_", "option1": "a", "option2": "b", "answer": ""})", "answer");
  expect_error(ChoiceTask::kWinogrande,
               R"({"sentence": "a", "option1": "a", "option2": "b", "answer": "1"})", "has no _");
}

// Under the sanitizers: no cut and no wrong byte may do more than give an error of one line.
TEST(ChoiceItems, DamagedFiles) {
  const std::pair<ChoiceTask, std::string> files[] = {
      {ChoiceTask::kArc, kArcRow},
      {ChoiceTask::kHellaswag, "a\n1\nb\nc [d]\ne\nf\n"},
      {ChoiceTask::kHellaswag,
       R"({"activity_label": "a", "ctx_a": "b [", "ctx_b": "\u00e9]", "label": 0, "endings": ["c"]})"},
      {ChoiceTask::kMmlu, "\"q \"\"x\"\"\",a,b,c,d,B\r\n"},
      {ChoiceTask::kTruthfulMc2, R"([{"question": "a", "mc2_targets": {"b": 0, "c": 1}}])"},
      {ChoiceTask::kWinogrande,
       R"({"sentence": "a _ b", "option1": "c", "option2": "d", "answer": "1"})"}};
  const auto check = [](ChoiceTask task, const std::string& text) {
    const auto file = parse_choices(task, "d", text);
    if (!file) {
      EXPECT_EQ(file.error().message.find('\n'), std::string::npos);
      return;
    }
    for (const ChoiceItem& item : file->items) {
      EXPECT_LT(item.gold(), item.endings.size());
      EXPECT_EQ(item.right.size(), item.endings.size());
      EXPECT_EQ(item.choices.size(), item.endings.size());
    }
  };
  for (const auto& [task, text] : files) {
    for (std::size_t size = 0; size < text.size(); ++size) check(task, text.substr(0, size));
    for (std::size_t at = 0; at < text.size(); ++at)
      for (const char byte : {'\0', '"', '\n', ',', '[', '}', '9', '\xff'}) {
        std::string damaged = text;
        damaged[at] = byte;
        check(task, damaged);
      }
  }
}

TEST(ChoiceItems, PromptsWithExamples) {
  ChoiceFile file;
  file.header = "H\n\n";
  for (const char* name : {"a", "b", "c"}) {
    ChoiceItem item;
    item.contexts = {std::string("Q ") + name};
    item.endings = {"x", std::string("right ") + name};
    item.right = {0, 1};
    file.items.push_back(item);
  }
  EXPECT_EQ(choice_prompt(file, nullptr, 0, 1, 0), "H\n\nQ b");
  // From the file itself: its first items, never the one that is asked.
  EXPECT_EQ(choice_prompt(file, nullptr, 2, 1, 0), "H\n\nQ a right a\n\nQ c right c\n\nQ b");
  EXPECT_EQ(choice_prompt(file, &file, 1, 0, 0), "H\n\nQ a right a\n\nQ a");
}

TEST(PythonText, AsPythonDoes) {
  EXPECT_EQ(strip("\x1f \t a b\xc2\xa0\n"), "a b");
  EXPECT_EQ(strip_right(" a "), " a");
  EXPECT_EQ(strip("\xe3\x80\x80"), "");
  EXPECT_EQ(capitalize("\xc3\xa9T\xc3\x89 IS"), "\xc3\x89t\xc3\xa9 is");
  EXPECT_EQ(capitalize("a\xff"
                       "B"),
            "A\xff"
            "b");
  EXPECT_EQ(count_characters("a\xc3\xa9\xe2\x82\xac\xff"), 4);
  EXPECT_EQ(replace_all("a    b", "  ", " "), "a  b");
}

}  // namespace
}  // namespace trimpot
