// metrics.jsonl and loss.svg.
#include "tune/run_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tune/loss_curve.h"

namespace trimpot {
namespace {

class RunFolderTest : public testing::Test {
 protected:
  RunFolderTest()
      : path_((std::filesystem::temp_directory_path() /
               ("trimpot-run-" + std::to_string(getpid()) + "/deep/er"))
                  .string()) {}
  ~RunFolderTest() override {
    std::filesystem::remove_all(std::filesystem::path(path_).parent_path().parent_path());
  }
  std::string read(const std::string& name) const {
    std::ifstream file(path_ + "/" + name);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  static StepMetrics step(std::uint64_t n) {
    return {n, 0.5, 3.0 / static_cast<double>(n), 1e-3, 0.7, n * 100, 1234.5, 2.0};
  }
  std::string path_;
};

// Catches: lines that appear only at the end of the run, numbers that are not JSON (nan), keys that
// change their names.
TEST_F(RunFolderTest, WritesOneObjectALineAtOnce) {
  auto folder = RunFolder::open(path_);
  ASSERT_TRUE(folder) << folder.error().message;
  ASSERT_TRUE(folder->append(EvalMetrics{0, 4.0, 10, 0.1}));
  ASSERT_TRUE(folder->append(step(1)));
  StepMetrics broken = step(2);
  broken.loss = std::nan("");
  ASSERT_TRUE(folder->append(broken));
  std::istringstream lines(read("metrics.jsonl"));  // the folder is still open
  std::string line;
  std::vector<nlohmann::json> objects;
  while (std::getline(lines, line)) objects.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(objects.size(), 3u);
  EXPECT_EQ(objects[0]["eval_loss"], 4.0);
  EXPECT_EQ(objects[1]["learning_rate"], 1e-3);
  EXPECT_EQ(objects[1]["tokens"], 100);
  EXPECT_TRUE(objects[2]["loss"].is_null());

  const auto metrics = read_metrics(path_ + "/metrics.jsonl");
  ASSERT_TRUE(metrics) << metrics.error().message;
  ASSERT_EQ(metrics->steps.size(), 2u);
  EXPECT_EQ(metrics->steps[0].loss, 3.0);
  EXPECT_EQ(metrics->steps[0].tokens_per_second, 1234.5);
  EXPECT_TRUE(std::isnan(metrics->steps[1].loss));
  ASSERT_EQ(metrics->evals.size(), 1u);
  EXPECT_EQ(metrics->evals[0].tokens, 10u);
}

// Catches: steps that appear twice after a resume from an older checkpoint, an evaluation lost, a
// line cut by a kill that spoils the file.
TEST_F(RunFolderTest, ResumeKeepsTheLinesUpToItsStep) {
  {
    auto folder = RunFolder::open(path_);
    ASSERT_TRUE(folder);
    for (std::uint64_t n = 1; n <= 5; ++n) {
      ASSERT_TRUE(folder->append(step(n)));
      if (n % 2 == 1) {
        ASSERT_TRUE(folder->append(EvalMetrics{n, 1.0, 1, 1.0}));
      }
    }
  }
  std::ofstream(path_ + "/metrics.jsonl", std::ios::app) << "{\"step\":6,\"lo";
  {
    auto folder = RunFolder::open(path_, 3);
    ASSERT_TRUE(folder) << folder.error().message;
    EXPECT_EQ(folder->metrics().steps.size(), 3u);
    ASSERT_TRUE(folder->append(step(4)));
  }
  const auto metrics = read_metrics(path_ + "/metrics.jsonl");
  ASSERT_TRUE(metrics) << metrics.error().message;
  ASSERT_EQ(metrics->steps.size(), 4u);
  EXPECT_EQ(metrics->steps[3].step, 4u);
  ASSERT_EQ(metrics->evals.size(), 2u);
  EXPECT_EQ(metrics->evals[1].step, 3u);
  // In the order of the run.
  const std::string text = read("metrics.jsonl");
  EXPECT_LT(text.find("{\"step\":3,\"epoch\""), text.find("{\"step\":3,\"eval_loss\""));
  EXPECT_LT(text.find("{\"step\":3,\"eval_loss\""), text.find("{\"step\":4,"));

  auto anew = RunFolder::open(path_);
  ASSERT_TRUE(anew);
  EXPECT_EQ(read("metrics.jsonl"), "");
}

TEST_F(RunFolderTest, ErrorsNameTheFile) {
  std::filesystem::create_directories(path_);
  std::ofstream(path_ + "/metrics.jsonl") << "{\"step\":1,\"loss\":2}\nhello\n";
  const auto foreign = RunFolder::open(path_, 1);
  ASSERT_FALSE(foreign);
  EXPECT_NE(foreign.error().message.find("metrics.jsonl:2"), std::string::npos);
  EXPECT_FALSE(RunFolder::open(path_ + "/metrics.jsonl"));
  EXPECT_FALSE(RunFolder::open(path_ + "/metrics.jsonl/below"));
  EXPECT_FALSE(read_metrics(path_ + "/none.jsonl"));
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

// Every number in the coordinates lies inside the picture; NaN would make a viewer drop the line.
void expect_drawable(const std::string& svg) {
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_EQ(svg.substr(svg.size() - 7), "</svg>\n");
  for (auto at = svg.find("points=\""); at != std::string::npos; at = svg.find("points=\"", at)) {
    at += 8;
    std::istringstream points(svg.substr(at, svg.find('"', at) - at));
    double x = 0, y = 0;
    char comma = 0;
    std::size_t read = 0;
    for (; points >> x >> comma >> y; ++read)
      EXPECT_TRUE(x >= 0 && x <= 720 && y >= 0 && y <= 420) << x << " " << y;
    EXPECT_TRUE(read > 0 && points.eof());
  }
}

TEST_F(RunFolderTest, DrawsTheLoss) {
  auto folder = RunFolder::open(path_);
  ASSERT_TRUE(folder);
  for (std::uint64_t n = 1; n <= 50; ++n) ASSERT_TRUE(folder->append(step(n)));
  ASSERT_TRUE(folder->append(EvalMetrics{25, 1.0, 1, 1.0}));
  ASSERT_TRUE(folder->append(EvalMetrics{50, 0.9, 1, 1.0}));
  ASSERT_TRUE(folder->write_loss_curve("a < b & c"));
  const std::string svg = read("loss.svg");
  expect_drawable(svg);
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_NE(svg.find("fill=\"#fff\""), std::string::npos);
  EXPECT_EQ(count(svg, "<polyline"), 3u);
  EXPECT_EQ(count(svg, "<circle"), 2u);
  EXPECT_EQ(svg.find("<script"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path_ + "/loss.svg.partial"));
}

// Catches: division by an empty range, axes without a tick, a file of a million points.
TEST(LossCurve, SurvivesOddData) {
  const double nan = std::nan("");
  expect_drawable(loss_curve_svg({"empty", {}, {}}));
  expect_drawable(loss_curve_svg({"one", {{1, 2.5}}, {}}));
  expect_drawable(loss_curve_svg({"flat", {{1, 2.5}, {2, 2.5}, {3, 2.5}}, {{0, 2.5}}}));
  expect_drawable(loss_curve_svg({"zero", {{1, 0.0}, {2, 0.0}}, {}}));
  expect_drawable(loss_curve_svg({"not finite", {{1, nan}, {2, 1.0}, {3, INFINITY}}, {{1, nan}}}));
  expect_drawable(loss_curve_svg({"tiny", {{1, 1e-12}, {2, 3e-12}}, {}}));
  expect_drawable(loss_curve_svg({"huge", {{1, 1e30}, {2, 1.0}}, {}}));
  LossCurve big{"big", {}, {}};
  for (int i = 0; i < 100000; ++i) big.training.push_back({i + 1.0, 1.0 + 1.0 / (i + 1)});
  const std::string svg = loss_curve_svg(big);
  expect_drawable(svg);
  EXPECT_LT(svg.size(), 100000u);
}

}  // namespace
}  // namespace trimpot
