// Training records: every kind of record, and every way to get it wrong with its message.
#include "data/records.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "data/json_pieces.h"

namespace trimpot {
namespace {

std::vector<Record> must_parse(std::string_view text, const std::string& path = "d.jsonl") {
  auto file = parse_records(path, text);
  EXPECT_TRUE(file) << (file ? "" : file.error().message);
  return file ? std::move(file->records) : std::vector<Record>{};
}

std::string error_of(std::string_view text, const std::string& path = "d.jsonl") {
  const auto file = parse_records(path, text);
  EXPECT_FALSE(file) << "no error for: " << text.substr(0, 80);
  if (file) return "";
  EXPECT_EQ(file.error().message.find('\n'), std::string::npos) << "more than one line";
  EXPECT_LT(file.error().message.size(), 500u);
  return file.error().message;
}

// "role:content|role:content"
std::string shown(const Record& record) {
  if (record.kind == Record::Kind::kText) return "text:" + record.text;
  std::string result;
  for (const Message& m : record.messages)
    result += (result.empty() ? "" : "|") + m.role + ":" + m.content;
  return result;
}

struct KindCase {
  const char* json;
  const char* expected;
};

class Kinds : public testing::TestWithParam<KindCase> {};

// Catches: a kind that is read as another, swapped fields, a lost input or system message.
TEST_P(Kinds, BecomeNeutral) {
  const auto records = must_parse(GetParam().json);
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(shown(records[0]), GetParam().expected);
}

INSTANTIATE_TEST_SUITE_P(
    Records, Kinds,
    testing::Values(
        KindCase{R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},)"
                 R"({"role":"assistant","content":"a"}]})",
                 "system:s|user:u|assistant:a"},
        KindCase{R"({"prompt":"p","completion":"c"})", "user:p|assistant:c"},
        KindCase{R"({"prompt":[{"role":"user","content":"p"}],)"
                 R"("completion":[{"role":"assistant","content":"c"}]})",
                 "user:p|assistant:c"},
        KindCase{R"({"text":"plain \u00e9\n"})", "text:plain \xc3\xa9\n"},
        KindCase{R"({"instruction":"i","input":"x","output":"o"})", "user:i\n\nx|assistant:o"},
        KindCase{R"({"instruction":"i","input":"","output":"o"})", "user:i|assistant:o"},
        KindCase{R"({"instruction":"i","output":"o","text":"t"})", "user:i|assistant:o"},
        KindCase{R"({"instruction":"i","input":null,"output":"o"})", "user:i|assistant:o"},
        KindCase{R"({"instruction":"i","input":"<noinput>","output":"o"})", "user:i|assistant:o"},
        KindCase{R"({"system":"s","instruction":"i","input":"x","output":"o"})",
                 "system:s|user:i\n\nx|assistant:o"},
        KindCase{R"({"conversations":[{"from":"human","value":"h"},{"from":"gpt","value":"g"}]})",
                 "user:h|assistant:g"},
        KindCase{R"({"system":"s","conversations":[{"from":"user","value":"h"},)"
                 R"({"from":"assistant","value":"g"}]})",
                 "system:s|user:h|assistant:g"},
        KindCase{R"({"question":"q","answer":"a","id":7})", "user:q|assistant:a"}));

// Catches: a byte order mark taken for text, CRLF or blank lines taken for records, lines that are
// miscounted because of them.
TEST(Records, JsonLinesMayBeUntidy) {
  const auto records =
      must_parse("\xef\xbb\xbf\r\n\r\n{\"text\":\"a\"}\r\n\n  \t\n{\"text\":\"b\"}");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].line, 3u);
  EXPECT_EQ(records[1].line, 6u);
  EXPECT_EQ(records[1].text, "b");
}

TEST(Records, KindsMayBeMixed) {
  const auto records = must_parse("{\"text\":\"a\"}\n{\"prompt\":\"p\",\"completion\":\"c\"}\n");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].kind, Record::Kind::kMessages);
}

// Catches: brackets, commas or quotes inside strings that end a record.
TEST(Records, ArraysKnowTheLineOfEveryRecord) {
  const auto records = must_parse(
      "[\n {\n  \"text\": \"a ] } , \\\" [\"\n },\n\n {\"text\": \"b\\\\\"}\n]\n", "d.json");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].text, "a ] } , \" [");
  EXPECT_EQ(records[0].line, 2u);
  EXPECT_EQ(records[1].text, "b\\");
  EXPECT_EQ(records[1].line, 6u);
}

TEST(Records, PlainTextIsWhatIsNoJsonOrEndsInTxt) {
  for (const auto& [path, text] :
       {std::pair{"d.md", "  Once upon a time"}, std::pair{"d.TXT", "[1] a footnote"},
        std::pair{"d.txt", "{\"text\": broken"}}) {
    const auto file = parse_records(path, text);
    ASSERT_TRUE(file) << path;
    EXPECT_TRUE(file->plain_text);
    ASSERT_EQ(file->records.size(), 1u);
    EXPECT_EQ(file->records[0].text, text);
  }
  // Records whose first line is broken are none.
  EXPECT_EQ(error_of("\"text\": \"a\"}\n{\"text\": \"b\"}", "d.jsonl").find("d.jsonl:1: broken"),
            0u);
  EXPECT_EQ(error_of("// records\n{\"text\": \"b\"}", "d.JSON").find("d.JSON:1: broken"), 0u);
  // Carriage returns are part of a text.
  EXPECT_EQ(must_parse("\xef\xbb\xbf"
                       "a\r\nb",
                       "d.txt")[0]
                .text,
            "a\r\nb");
}

struct ErrorCase {
  const char* text;
  const char* begins;  // place
  const char* names;   // somewhere behind it
};

class Errors : public testing::TestWithParam<ErrorCase> {};

TEST_P(Errors, NamePlaceFieldAndExpectation) {
  const std::string message = error_of(GetParam().text);
  EXPECT_EQ(message.find(GetParam().begins), 0u) << message;
  EXPECT_NE(message.find(GetParam().names), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Records, Errors,
    testing::Values(
        ErrorCase{"", "d.jsonl: ", "empty"}, ErrorCase{" \r\n", "d.jsonl: ", "empty"},
        ErrorCase{"[]", "d.jsonl: ", "no training record"},
        ErrorCase{"{\"text\":\"a\"}\n{\"text\":", "d.jsonl:2: ", "broken JSON"},
        ErrorCase{"{\"text\":\"a\"} {\"text\":\"b\"}", "d.jsonl:1: ", "broken JSON"},
        ErrorCase{"{\"text\":\"a\"}\n[1]", "d.jsonl:2: ", "the record is array"},
        ErrorCase{"{}", "d.jsonl:1: ", "none of the fields"},
        ErrorCase{"\n{\"prompt\":\"p\"}", "d.jsonl:2: ", "\"completion\" is missing; a string"},
        ErrorCase{"{\"prompt\":\"p\",\"completion\":3}",
                  "d.jsonl:1: ", "\"completion\" is number; a string"},
        ErrorCase{"{\"question\":\"q\"}", "d.jsonl:1: ", "\"answer\" is missing"},
        ErrorCase{"{\"text\":null}", "d.jsonl:1: ", "\"text\" is null"},
        ErrorCase{"{\"instruction\":\"i\",\"input\":[],\"output\":\"o\"}",
                  "d.jsonl:1: ", "\"input\" is array"},
        ErrorCase{"{\"messages\":{}}", "d.jsonl:1: ", "a list of messages"},
        ErrorCase{"{\"messages\":[]}", "d.jsonl:1: ", "empty list"},
        ErrorCase{"{\"messages\":[\"hi\"]}", "d.jsonl:1: ", "messages[0] is string; an object"},
        ErrorCase{"{\"messages\":[{\"role\":\"user\"}]}",
                  "d.jsonl:1: ", "\"content\" of messages[0] is missing"},
        ErrorCase{"{\"messages\":[{\"role\":\"usr\",\"content\":\"\"}]}",
                  "d.jsonl:1: ", "\"usr\"; system, user or assistant"},
        ErrorCase{"{\"conversations\":[{\"from\":\"bot\",\"value\":\"\"}]}",
                  "d.jsonl:1: ", "system, human or gpt"},
        // Arrays: the record, and for broken JSON the very line.
        ErrorCase{"[{\"text\":\"a\"},\n{\"prompt\":\"p\"}]",
                  "d.jsonl: record 2 (line 2): ", "completion"},
        ErrorCase{"[{\"text\":\"a\"},\n{\n\"text\" 1}]",
                  "d.jsonl: record 2 (line 3): ", "broken JSON"},
        ErrorCase{"[{\"text\":\"a\"},]", "d.jsonl: record 2 (line 1): ", "broken JSON"},
        ErrorCase{"[{\"text\":\"a\"}\n{\"text\":\"b\"}]",
                  "d.jsonl: record 1 (line 2): ", "broken JSON"},
        ErrorCase{"[{\"text\":\"a\"}", "d.jsonl: record 1 (line 1): ", "cut off"},
        ErrorCase{"[", "d.jsonl: record 1 (line 1): ", "cut off"},
        ErrorCase{"[\n{\"text\":\"a\"}\n]\n]", "d.jsonl:4: ", "after the closing ]"},
        // Numbers that no double holds, lone surrogates, raw control characters.
        ErrorCase{"{\"text\":\"a\",\"n\":1e999}", "d.jsonl:1: ", "number overflow"},
        ErrorCase{"{\"text\":\"\\ud800\"}", "d.jsonl:1: ", "broken JSON"},
        ErrorCase{"{\"text\":\"a\tb\"}", "d.jsonl:1: ", "broken JSON"}));

TEST(Records, HugeWholeNumbersInOtherFieldsAreFine) {
  EXPECT_EQ(must_parse("{\"text\":\"a\",\"n\":" + std::string(300, '9') + "}").size(), 1u);
}

TEST(Records, InvalidUtf8NamesLineAndByte) {
  EXPECT_EQ(error_of("{\"text\":\"a\"}\n{\"text\":\"\xff\"}").find("d.jsonl:2: byte 0xff"), 0u);
  EXPECT_EQ(error_of("[{\"text\":\"a\"},\n{\n\"text\":\"\xc3(\"}]").find("d.jsonl:3: byte 0xc3"),
            0u);
  EXPECT_EQ(error_of("fine\nfine\n\xed\xa0\x80", "d.txt").find("d.txt:3: byte 0xed"), 0u);
  EXPECT_EQ(error_of(std::string("\xff\xfe"
                                 "h\0i\0",
                                 6))
                .find("d.jsonl:1: byte 0xff"),
            0u);
}

// Catches: recursion on the nesting of hostile JSON (a stack overflow is no error message), and
// quadratic time on it.
TEST(Records, DeepNestingIsRefused) {
  for (const char* bracket : {"[", "{\"a\":"}) {
    std::string deep;
    for (int i = 0; i < 100000; ++i) deep += bracket;
    EXPECT_NE(error_of("{\"text\":" + deep).find("nests deeper"), std::string::npos);
    EXPECT_NE(error_of("[" + deep).find("nests deeper"), std::string::npos);
  }
  // Brackets in strings do not nest.
  EXPECT_EQ(must_parse("{\"text\":\"" + std::string(1000, '[') + "\"}").size(), 1u);
}

// Catches: any input that ends the process or reads out of bounds (run under sanitizers): every
// prefix and a one-byte change of a file with all constructs.
TEST(Records, DamagedFilesGiveErrorsNotCrashes) {
  const std::string good =
      "[{\"messages\":[{\"role\":\"user\",\"content\":\"u\\u00e9\xc3\xa9\"},{\"role\":"
      "\"assistant\",\"content\":\"a\\\"\"}]},\n{\"instruction\":\"i\",\"output\":\"o\"}]";
  for (const std::string& text : {good, good.substr(1)}) {
    for (std::size_t length = 0; length < text.size(); ++length)
      (void)parse_records("d", std::string_view(text).substr(0, length));
    for (std::size_t i = 0; i < text.size(); ++i)
      for (const char c : {'"', '\\', '{', ']', ',', '\n', '\0', '\xff'}) {
        std::string damaged = text;
        damaged[i] = c;
        (void)parse_records("d", damaged);
      }
  }
}

TEST(Records, ReadsFilesAndNamesMissingOnes) {
  const auto missing = read_records("no/such/file.jsonl");
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("no/such/file.jsonl"), std::string::npos);

  const auto path =
      std::filesystem::temp_directory_path() / ("trimpot-records-" + std::to_string(getpid()));
  std::ofstream(path) << "{\"text\":\"a\"}\n";
  const auto file = read_records(path.string());
  std::filesystem::remove(path);
  ASSERT_TRUE(file);
  EXPECT_FALSE(file->plain_text);
  EXPECT_EQ(file->records.at(0).text, "a");
}

// Catches: overlong forms, surrogates, code points too high, cut sequences, and a fast path that
// jumps over a bad byte.
TEST(Utf8, FindsTheFirstBadByte) {
  for (const char* good :
       {"", "plain ascii text of some length", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
        "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf"})
    EXPECT_FALSE(find_invalid_utf8(good)) << good;
  for (const char* bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\xf0\x9f\x98", "\xe2\x28\xa1", "\xff"})
    for (std::size_t before = 0; before < 20; ++before) {
      const std::string text = std::string(before, 'x') + bad;
      EXPECT_EQ(find_invalid_utf8(text), before);
      EXPECT_EQ(find_invalid_utf8(text + "xxxxxxxxxxxx"), before);
    }
}

}  // namespace
}  // namespace trimpot
