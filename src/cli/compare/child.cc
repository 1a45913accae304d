#include "cli/compare/child.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "cli/engine.h"

namespace trimpot::cli {
namespace {

constexpr std::size_t kMostOutput = std::size_t{64} << 20;  // JSON of a command is a few kB
constexpr std::size_t kMostErrors = 4096;

struct Pipe {
  int read_end = -1, write_end = -1;
  Status open() {
    std::array<int, 2> ends;
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
      return fail("cannot make a pipe: {}", strerror(errno));
    read_end = ends[0];
    write_end = ends[1];
    return {};
  }
  void close_write() {
    if (write_end >= 0) ::close(write_end);
    write_end = -1;
  }
  ~Pipe() {
    close_write();
    if (read_end >= 0) ::close(read_end);
  }
};

// Between fork and exec only calls that are safe there (signal-safety(7)).
[[noreturn]] void become(char* const* argv, const Pipe& out, const Pipe& errors, int empty,
                         pid_t parent) {
  ::setpgid(0, 0);  // Ctrl-C reaches the parent alone, which decides
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(127);  // it died before the line above
  ::dup2(empty, STDIN_FILENO);
  ::dup2(out.write_end, STDOUT_FILENO);
  ::dup2(errors.write_end, STDERR_FILENO);
  ::execv("/proc/self/exe", argv);
  ::_exit(127);
}

// Appends what there is to read; false at the end.
bool drain(int descriptor, std::string& text, std::size_t most, bool keep_end) {
  std::array<char, 65536> buffer;
  const ssize_t count = ::read(descriptor, buffer.data(), buffer.size());
  if (count < 0) return errno == EINTR || errno == EAGAIN;
  text.append(buffer.data(), static_cast<std::size_t>(count));
  if (text.size() > most) {
    if (keep_end) {
      text.erase(0, text.size() - most);
    } else {
      text.resize(most);
    }
  }
  return count > 0;
}

// Reads both pipes to their ends; false if interrupted before.
bool read_all(Pipe& out, Pipe& errors, ChildResult& result) {
  std::array<pollfd, 2> waits{{{out.read_end, POLLIN, 0}, {errors.read_end, POLLIN, 0}}};
  while (waits[0].fd >= 0 || waits[1].fd >= 0) {
    if (interrupted()) return false;
    if (::poll(waits.data(), waits.size(), 200) <= 0) continue;
    if (waits[0].fd >= 0 && waits[0].revents != 0 &&
        !drain(waits[0].fd, result.output, kMostOutput, false))
      waits[0].fd = -1;
    if (waits[1].fd >= 0 && waits[1].revents != 0 &&
        !drain(waits[1].fd, result.last_lines, kMostErrors, true))
      waits[1].fd = -1;
  }
  return true;
}

}  // namespace

Result<ChildResult> run_child(const std::vector<std::string>& arguments) {
  Pipe out, errors;
  TRIMPOT_TRY_VOID(out.open());
  TRIMPOT_TRY_VOID(errors.open());
  std::vector<std::string> words{"trimpot"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int empty = ::open("/dev/null", O_RDONLY | O_CLOEXEC);

  const auto start = std::chrono::steady_clock::now();
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) become(argv.data(), out, errors, empty, parent);
  const int fork_error = errno;
  ::close(empty);
  if (child < 0) return fail("cannot start a process: {}", strerror(fork_error));
  out.close_write();
  errors.close_write();

  ChildResult result;
  const bool complete = read_all(out, errors, result);
  if (!complete) ::kill(child, SIGKILL);
  int status = 0;
  struct rusage usage {};
  while (::wait4(child, &status, 0, &usage) < 0 && errno == EINTR) {
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.peak_rss_mb = static_cast<double>(usage.ru_maxrss) * 1024 / 1e6;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (!complete) return fail("stopped");
  return result;
}

}  // namespace trimpot::cli
