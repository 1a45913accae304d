#include "serve/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace trimpot::serve {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kReadMilliseconds = 10'000, kWriteMilliseconds = 10'000;
constexpr std::chrono::seconds kWholeRequest{60};
// httplib reads lines and headers of any length and number, before anybody is asked for a key.
constexpr std::size_t kMostHeaderBytes = 64 << 10;

void address(const sockaddr_storage& from, std::string& ip, int& port) {
  char text[INET6_ADDRSTRLEN] = "";
  if (from.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(from);
    ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
    port = ntohs(v4.sin_port);
  } else if (from.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(from);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
    port = ntohs(v6.sin6_port);
  }
  ip = text;
}

}  // namespace

Connection::Connection(int socket) : socket_(socket) {
  const int on = 1;  // tokens go out as they are made
  ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Connection::~Connection() {
  ::shutdown(socket_, SHUT_RDWR);
  ::close(socket_);
}

short Connection::poll_for(short events, int milliseconds) const {
  pollfd entry{socket_, events, 0};
  int ready;
  do {
    ready = ::poll(&entry, 1, milliseconds);
  } while (ready < 0 && errno == EINTR);
  return ready > 0 ? entry.revents : short{0};
}

bool Connection::wait_for_request(std::chrono::seconds patience, const std::atomic<bool>& stop) {
  const auto until = Clock::now() + patience;
  while (begin_ == end_ && !poll_for(POLLIN, 100))
    if (stop || Clock::now() >= until) return false;
  read_until_ = Clock::now() + kWholeRequest;
  stop_ = &stop;
  header_bytes_left_ = kMostHeaderBytes;
  char byte;  // what is here is answered, though nothing may follow it
  return begin_ != end_ || ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

bool Connection::gone() const {
  const short came = poll_for(POLLIN | POLLRDHUP, 0);
  // Said first: what a client sent behind its request, a line end or another request, is not read
  // while this one is answered, and would hide that it has left.
  if ((came & (POLLRDHUP | POLLHUP | POLLERR)) != 0) return true;
  if (begin_ != end_ || came == 0) return false;
  char byte;
  const ssize_t got = ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void Connection::drain() {
  ::shutdown(socket_, SHUT_WR);
  const auto until = Clock::now() + std::chrono::seconds(2);
  while (Clock::now() < until && poll_for(POLLIN, 200))
    if (::recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT) <= 0) return;
}

bool Connection::is_readable() const {
  return begin_ != end_ || poll_for(POLLIN, kReadMilliseconds);
}

bool Connection::is_writable() const { return poll_for(POLLOUT, kWriteMilliseconds) && !gone(); }

ssize_t Connection::read(char* data, size_t size) {
  if (header_bytes_left_ == 0) return -1;
  if (begin_ == end_) {
    const auto late = Clock::now() + std::chrono::milliseconds(kReadMilliseconds);
    while (!poll_for(POLLIN, 100))
      if (*stop_ || Clock::now() >= std::min(late, read_until_)) return -1;
    if (Clock::now() >= read_until_) return -1;
    const ssize_t got = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
    if (got <= 0) return got;
    begin_ = 0;
    end_ = static_cast<std::size_t>(got);
  }
  const std::size_t count = std::min({size, end_ - begin_, header_bytes_left_});
  if (header_bytes_left_ != SIZE_MAX) header_bytes_left_ -= count;
  std::memcpy(data, buffer_.data() + begin_, count);
  begin_ += count;
  return static_cast<ssize_t>(count);
}

ssize_t Connection::write(const char* data, size_t size) {
  if (!poll_for(POLLOUT, kWriteMilliseconds)) return -1;
  ssize_t sent;
  do {
    sent = ::send(socket_, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) &&
        !poll_for(POLLOUT, kWriteMilliseconds))
      return -1;
  } while (sent < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK));
  return sent;
}

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage from{};
  socklen_t size = sizeof from;
  if (::getpeername(socket_, reinterpret_cast<sockaddr*>(&from), &size) == 0)
    address(from, ip, port);
}

void Connection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage from{};
  socklen_t size = sizeof from;
  if (::getsockname(socket_, reinterpret_cast<sockaddr*>(&from), &size) == 0)
    address(from, ip, port);
}

}  // namespace trimpot::serve
