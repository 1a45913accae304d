#include "text/unicode.h"

#include <gtest/gtest.h>

namespace trimpot::text {
namespace {

TEST(Unicode, EveryCodePointDecodes) {
  for (char32_t value = 0; value < 0x110000; ++value) {
    if (value >= 0xd800 && value < 0xe000) continue;
    std::string text = "x";
    append_utf8(text, value);
    const CodePoint decoded = decode_utf8(text, 1);
    ASSERT_TRUE(decoded.valid) << std::uint32_t{value};
    ASSERT_EQ(decoded.value, value);
    ASSERT_EQ(decoded.bytes, text.size() - 1);
  }
}

TEST(Unicode, BadBytesAreOneByteEach) {
  for (const std::string_view bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3", "\xe2\x82", "\xf0\x9f\x98", "\xc3(",
        "\xe2(\xa1", "\xe2\x82("}) {
    const CodePoint decoded = decode_utf8(bad, 0);
    EXPECT_FALSE(decoded.valid) << testing::PrintToString(bad);
    EXPECT_EQ(decoded.bytes, 1u);
  }
}

TEST(Unicode, ClassesAreThoseOfTheRegexEngine) {
  const auto expect = [](CharClass kind, std::initializer_list<char32_t> points) {
    for (const char32_t point : points)
      EXPECT_EQ(char_class(point), kind) << std::hex << std::uint32_t{point};
  };
  expect(CharClass::kSpace, {9, 10, 11, 12, 13, ' ', 0x85, 0xa0, 0x1680, 0x2003, 0x2028, 0x3000});
  // No white space, though some libraries say so.
  expect(CharClass::kOther, {0x1c, 0x1f, 0x180e, 0x200b, 0xfeff, 0, '$', 0x301, 0xe000, 0x10ffff});
  expect(CharClass::kPunctuation, {'!', '_', 0x2014, 0x3002, 0x16d6d});
  expect(CharClass::kLetter, {'a', 0xaa, 0x17f, 0x3042, 0x4e00, 0xac00, 0x20000, 0x2ebf0, 0x13460});
  expect(CharClass::kNumber, {'0', 0xb2, 0xbd, 0x2167, 0x661, 0x1d7ce, 0x16d70, 0x1ccf0});
  expect(CharClass::kNewNumber, {0x11de0, 0x11de9, 0x16ff4});
}

std::string composed(std::string_view text) {
  std::string storage;
  return std::string(normalize_nfc(text, storage));
}

TEST(Unicode, ComposesToNfc) {
  EXPECT_EQ(composed("plain"), "plain");
  EXPECT_EQ(composed("e\u0301"), "\u00e9");
  EXPECT_EQ(composed("xe\u0301y\u00e9z"), "x\u00e9y\u00e9z");
  EXPECT_EQ(composed("a\u0301\u0323"), "\u1ea1\u0301");  // reordered, then composed
  EXPECT_EQ(composed("\u212b\u2126"), "\u00c5\u03a9");   // singletons
  EXPECT_EQ(composed("\u1100\u1161\u11a8"), "\uac01");
  EXPECT_EQ(composed("\uac00\u11a8\u304b\u3099"), "\uac01\u304c");
  EXPECT_EQ(composed("\u0958"), "\u0915\u093c");  // excluded from composition
  EXPECT_EQ(composed("\u0301e"), "\u0301e");
  EXPECT_EQ(composed("e\xff\u0301"), "e\xff\u0301");
  EXPECT_EQ(composed(std::string_view("e\0\u0301", 4)), std::string_view("e\0\u0301", 4));
}

// `tokenizers` composes by the rules of Unicode 9.
TEST(Unicode, NewerMarksAreLeftAlone) {
  EXPECT_EQ(composed("P\u1ac8\u032d"), "P\u1ac8\u032d");
  EXPECT_EQ(composed("\U00011935\U00011930"), "\U00011935\U00011930");
  EXPECT_EQ(composed("\u1ac8e\u0301"), "\u1ac8\u00e9");
}

// Sorting marks by insertion would take minutes.
TEST(Unicode, AMegabyteOfMarksIsNotQuadratic) {
  std::string text = "e";
  std::string expected = "\u1eb9";
  for (int count = 0; count < 250000; ++count) text += "\u0301\u0323";
  for (int count = 1; count < 250000; ++count) expected += "\u0323";
  for (int count = 0; count < 250000; ++count) expected += "\u0301";
  EXPECT_TRUE(composed(text) == expected);
}

}  // namespace
}  // namespace trimpot::text
