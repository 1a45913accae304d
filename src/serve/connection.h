// One accepted socket. Private to http.cc: httplib's own streams do not let a handler see whether
// its client is still there.
#pragma once

#include <httplib.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace trimpot::serve {

class Connection final : public httplib::Stream {
 public:
  explicit Connection(int socket);
  ~Connection() override;  // closes
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Waits for the first byte of a request; false: none came in time, or `stop` was set. When it is
  // set later, what has not come by then is not waited for.
  bool wait_for_request(std::chrono::seconds patience, const std::atomic<bool>& stop);
  // Request line and headers were within bounds: from here on who reads the body counts.
  void headers_read() { header_bytes_left_ = SIZE_MAX; }
  // The client closed its end, or the connection broke.
  bool gone() const;
  // After this answer no request is read: there may be bytes on the way that are none.
  void close_after() { closing_ = true; }
  bool closing() const { return closing_; }
  // Takes what the client is still sending, for a moment, so that it gets to read the answer.
  void drain();

  bool is_readable() const override;
  bool is_writable() const override;
  ssize_t read(char* data, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

 private:
  // What of `events` has come; hang-ups and errors come unasked.
  short poll_for(short events, int milliseconds) const;

  int socket_;
  bool closing_ = false;
  std::chrono::steady_clock::time_point read_until_;  // a request has to be here by then
  const std::atomic<bool>* stop_ = nullptr;
  std::size_t header_bytes_left_ = 0;
  std::array<char, 16384> buffer_;  // httplib reads headers byte by byte
  std::size_t begin_ = 0, end_ = 0;
};

}  // namespace trimpot::serve
