// Text leaves in whole characters and never beyond a stop string, however the bytes arrive.
#include "serve/text_stream.h"

#include <gtest/gtest.h>

#include "support/random.h"

namespace trimpot::serve {
namespace {

struct Outcome {
  std::string text;
  bool stopped;
};

// The same bytes in pieces of random sizes; every piece of the output has to be UTF-8 by itself.
Outcome stream(const std::string& bytes, const std::vector<std::string>& stops,
               RandomStream& random) {
  TextStream stream(stops);
  Outcome outcome{"", false};
  for (std::size_t at = 0; at < bytes.size() && !stream.stopped();) {
    const auto count = static_cast<std::size_t>(1 + random.below(4));
    std::string piece;
    stream.add(std::string_view(bytes).substr(at, count), piece);
    EXPECT_EQ(valid_utf8(piece), piece);
    outcome.text += piece;
    at += count;
  }
  outcome.stopped = stream.stopped();
  std::string rest;
  stream.finish(rest);
  EXPECT_EQ(valid_utf8(rest), rest);
  outcome.text += rest;
  return outcome;
}

TEST(TextStream, AnyPiecesGiveTheSameText) {
  RandomStream random(1);
  const std::vector<std::string> alphabet{
      "a", "b", "\n", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
  for (int round = 0; round < 2000; ++round) {
    const auto make = [&](std::int64_t most) {
      std::string text;
      for (std::int64_t n = 1 + random.below(most); n > 0; --n)
        text += alphabet[static_cast<std::size_t>(random.below(6))];
      return text;
    };
    const std::string text = make(30), stop = make(4);
    const std::size_t at = text.find(stop);
    const Outcome outcome = stream(text, {stop}, random);
    EXPECT_EQ(outcome.stopped, at != std::string::npos);
    EXPECT_EQ(outcome.text, text.substr(0, at));
  }
}

TEST(TextStream, NothingIsHeldBackWithoutNeed) {
  TextStream stream({"STOP"});
  std::string out;
  stream.add("It is STO", out);
  EXPECT_EQ(out, "It is ");
  stream.add("RY", out);
  EXPECT_EQ(out, "It is STORY");
  stream.add("\xe2\x82", out);
  EXPECT_EQ(out, "It is STORY");
  stream.add("\xac", out);
  EXPECT_EQ(out, "It is STORY\xe2\x82\xac");
  stream.add("ST", out);
  stream.add("OP and more", out);
  EXPECT_EQ(out, "It is STORY\xe2\x82\xac");
  EXPECT_TRUE(stream.stopped());
}

TEST(TextStream, TheEarliestOfSeveralStops) {
  TextStream stream({"cd", "b"});
  std::string out;
  stream.add("abcd", out);
  EXPECT_EQ(out, "a");
}

TEST(TextStream, BytesThatAreNoCharacters) {
  EXPECT_EQ(valid_utf8("a\xff\x62\xe2\x82"), "a\xef\xbf\xbd\x62\xef\xbf\xbd\xef\xbf\xbd");
  RandomStream random(2);
  for (int round = 0; round < 500; ++round) {
    std::string bytes;
    for (int i = 0; i < 12; ++i) bytes += static_cast<char>(random.below(256));
    EXPECT_EQ(stream(bytes, {}, random).text, valid_utf8(bytes));
  }
}

}  // namespace
}  // namespace trimpot::serve
