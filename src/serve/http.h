// The API over HTTP/1.1, by cpp-httplib.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/result.h"
#include "serve/api.h"

namespace trimpot::serve {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8080;                               // 0: any free one
  std::size_t most_body = std::size_t{4} << 20;  // bytes
  std::size_t connections = 256;                 // served at once; more wait
};

class HttpServer {
 public:
  // Errors: the address cannot be had (in use, not of this machine, not allowed).
  static Result<std::unique_ptr<HttpServer>> listen(Api& api, const HttpOptions& options);
  ~HttpServer();  // stop()

  int port() const;
  // Whether connections are still accepted: some errors of the system end that.
  bool running() const;
  // Requests being answered at this moment.
  std::size_t open_requests() const;
  // Closes the door: waits for connections to end, cutting streams short. Drain the engine first.
  void stop();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace trimpot::serve
