#include "io/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "io/test_files.h"

namespace trimpot {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(AtomicFile, AppearsWholeOnCommit) {
  const TempFolder folder;
  const std::string path = folder.file("out");
  write_file(path, "old");
  auto file = AtomicFile::create(path);
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_TRUE(file->write("hello "));
  ASSERT_TRUE(file->write("world"));
  ASSERT_TRUE(file->write_at(0, bytes_of("J")));
  ASSERT_TRUE(file->write("!"));  // still at the end
  EXPECT_EQ(read_file(path), "old");
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(read_file(path), "Jello world!");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
  EXPECT_FALSE(file->write("more"));
  EXPECT_FALSE(file->commit());
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const TempFolder folder;
  {
    auto file = AtomicFile::create(folder.file("out"));
    ASSERT_TRUE(file);
    ASSERT_TRUE(file->write("half"));
    EXPECT_EQ(folder.names().size(), 1u);
    AtomicFile moved = std::move(*file);
    ASSERT_TRUE(moved.write(" more"));
    EXPECT_FALSE(file->write("moved from"));
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST(AtomicFile, MoveAssignmentRemovesTheOther) {
  const TempFolder folder;
  {
    auto first = AtomicFile::create(folder.file("first"));
    auto second = AtomicFile::create(folder.file("second"));
    ASSERT_TRUE(first && second);
    *first = std::move(*second);
    ASSERT_TRUE(first->write("second"));
    ASSERT_TRUE(first->commit());
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"second"});
}

TEST(AtomicFile, TwoWritersOfOneNameDoNotMix) {
  const TempFolder folder;
  const std::string path = folder.file("out");
  auto first = AtomicFile::create(path);
  auto second = AtomicFile::create(path);
  ASSERT_TRUE(first && second) << second.error().message;
  ASSERT_TRUE(first->write("first"));
  ASSERT_TRUE(second->write("second"));
  ASSERT_TRUE(first->commit());
  EXPECT_EQ(read_file(path), "first");
  ASSERT_TRUE(second->commit());
  EXPECT_EQ(read_file(path), "second");
  EXPECT_EQ(folder.names().size(), 1u);
}

// What a handler of Ctrl-C does. Catches: a file that is done and goes with the others, one whose
// object has moved and stays, places of files that are done and never come back.
TEST(AtomicFile, SignalsRemoveWhatIsNotDone) {
  const TempFolder folder;
  for (int i = 0; i < 40; ++i) {
    auto done = AtomicFile::create(folder.file("done"));
    ASSERT_TRUE(done && done->commit());
  }
  auto open = AtomicFile::create(folder.file("open"));
  ASSERT_TRUE(open);
  const AtomicFile moved = std::move(*open);
  EXPECT_EQ(folder.names().size(), 2u);
  AtomicFile::remove_partials();
  EXPECT_EQ(folder.names(), std::vector<std::string>{"done"});
}

TEST(AtomicFile, DoesNotFollowALinkInThePlaceOfThePartialFile) {
  const TempFolder folder;
  const std::string path = folder.file("out");
  write_file(folder.file("victim"), "precious");
  std::filesystem::create_symlink(folder.file("victim"),
                                  fmt::format("{}.partial-{}", path, ::getpid()));
  auto file = AtomicFile::create(path);
  ASSERT_TRUE(file);
  ASSERT_TRUE(file->write("new"));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(read_file(folder.file("victim")), "precious");
  EXPECT_EQ(read_file(path), "new");
}

TEST(AtomicFile, WriteAtStaysInsideWhatIsThere) {
  const TempFolder folder;
  auto file = AtomicFile::create(folder.file("out"));
  ASSERT_TRUE(file);
  ASSERT_TRUE(file->write("0123"));
  EXPECT_FALSE(file->write_at(3, bytes_of("xy")));
  EXPECT_FALSE(file->write_at(~std::size_t{0}, bytes_of("xy")));
  ASSERT_TRUE(file->write_at(2, bytes_of("xy")));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(read_file(folder.file("out")), "01xy");
}

TEST(AtomicFile, ExtendMakesRoom) {
  const TempFolder folder;
  auto file = AtomicFile::create(folder.file("out"));
  ASSERT_TRUE(file);
  ASSERT_TRUE(file->write("01"));
  ASSERT_TRUE(file->extend(5));
  ASSERT_TRUE(file->extend(3));  // never shorter
  ASSERT_TRUE(file->write_at(4, bytes_of("x")));
  EXPECT_FALSE(file->write_at(5, bytes_of("y")));
  ASSERT_TRUE(file->write("end"));
  EXPECT_FALSE(file->extend(~std::size_t{0}));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(read_file(folder.file("out")), std::string("01\0\0xend", 8));
  EXPECT_FALSE(file->extend(9));
}

TEST(AtomicFile, Errors) {
  const TempFolder folder;
  const auto message_of = [](const std::string& path) {
    const auto file = AtomicFile::create(path);
    return file ? std::string("no error") : file.error().message;
  };
  const std::string absent = folder.file("absent/out");
  EXPECT_EQ(message_of(absent),
            absent + ": cannot write: the folder does not exist; create it first");
  EXPECT_EQ(message_of(folder.file("")), folder.file("") + ": is a folder; name a file to write");
  EXPECT_NE(message_of("").find("empty"), std::string::npos);
  const std::string pipe = folder.file("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_NE(message_of(pipe).find("not a regular file"), std::string::npos);
}

TEST(AtomicFile, FullDisk) {
  auto file = AtomicFile::create("/dev/full");
  ASSERT_TRUE(file) << file.error().message;
  const Status status = file->write("x");
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("/dev/full: cannot write at byte 0: no space left"),
            std::string::npos)
      << status.error().message;
  const Status model = small_model().write("/dev/full");
  ASSERT_FALSE(model);
  EXPECT_NE(model.error().message.find("no space left"), std::string::npos);
}

// A rename would put a regular file in the place of the device.
TEST(AtomicFile, DevicesStayDevices) {
  auto file = AtomicFile::create("/dev/null");
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_TRUE(file->write("x"));
  ASSERT_TRUE(file->commit());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

}  // namespace
}  // namespace trimpot
