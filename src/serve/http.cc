#include "serve/http.h"

#include <sys/socket.h>

#include <algorithm>
#include <set>
#include <thread>

#include "io/printable.h"
#include "serve/connection.h"
#include "serve/connection_threads.h"

namespace trimpot::serve {
namespace {

constexpr int kRequestsPerConnection = 1000;
constexpr std::chrono::seconds kKeepAlive{5};
constexpr int kBacklog = 512;  // httplib's 5 would drop connections of clients that come at once

// httplib hands a handler the request, not its connection; each is served by one thread.
thread_local Connection* this_connection = nullptr;

HttpRequest to_request(const httplib::Request& from) {
  HttpRequest request;
  request.method = from.method;
  request.path = from.path;
  request.authorization = from.get_header_value("Authorization");
  request.content_type = from.get_header_value("Content-Type");
  request.origin = from.get_header_value("Origin");
  request.host = from.get_header_value("Host");
  Connection* connection = this_connection;
  request.gone = [connection] { return connection->gone(); };
  return request;
}

void fill(httplib::Response& to, HttpReply reply) {
  to.status = reply.status;
  for (const auto& [name, value] : reply.headers) to.set_header(name, value);
  if (!reply.stream) {
    to.set_content(reply.body, reply.type);
    return;
  }
  Connection* connection = this_connection;
  to.set_chunked_content_provider(reply.type, [next = std::move(reply.stream), connection](
                                                  std::size_t, httplib::DataSink& sink) {
    std::string events;
    const bool more = next(events);
    if (!events.empty() && !sink.write(events.data(), events.size())) return false;
    if (!more) sink.done();
    return !connection->gone();
  });
}

}  // namespace

class HttpServer::Impl : public httplib::Server {
 public:
  Impl(Api& api, const HttpOptions& options);
  ~Impl() override { close(); }

  Status open(const HttpOptions& options);
  void close();
  int port() const { return port_; }
  bool running() const { return is_running(); }
  std::size_t open_requests() const { return open_requests_; }

 private:
  bool process_and_close_socket(socket_t socket) override;
  HandlerResponse before_body(const httplib::Request& request, httplib::Response& response);
  void with_body(const httplib::Request& request, httplib::Response& response,
                 const httplib::ContentReader& content);
  void fill_error(const httplib::Request& request, httplib::Response& response);

  Api& api_;
  const std::size_t most_body_;
  int port_ = 0;
  std::atomic<std::size_t> open_requests_{0};
  std::atomic<bool> closing_{false};
  std::thread thread_;
};

HttpServer::Impl::Impl(Api& api, const HttpOptions& options)
    : api_(api), most_body_(options.most_body) {
  set_keep_alive_max_count(kRequestsPerConnection);  // what the headers tell
  set_keep_alive_timeout(kKeepAlive.count());
  new_task_queue = [threads = options.connections] { return new ConnectionThreads(threads); };
  // No SO_REUSEPORT, httplib's default: a second server on this port is to fail.
  set_socket_options([](socket_t socket) {
    const int on = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  });
  set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    return before_body(request, response);
  });
  Post("/.+",
       [this](const httplib::Request& request, httplib::Response& response,
              const httplib::ContentReader& content) { with_body(request, response, content); });
  set_error_handler([this](const httplib::Request& request, httplib::Response& response) {
    fill_error(request, response);
  });
  set_exception_handler(
      [](const httplib::Request&, httplib::Response& response, std::exception_ptr) {
        response.status = 503;  // no memory: nothing else throws
      });
}

Status HttpServer::Impl::open(const HttpOptions& options) {
  port_ = options.port == 0 ? bind_to_any_port(options.host)
                            : (bind_to_port(options.host, options.port) ? options.port : -1);
  if (port_ <= 0)
    return fail(
        "cannot listen on {} port {}: in use, not of this machine or not allowed; try another "
        "--port (0: any free one)",
        printable(options.host), options.port);
  ::listen(svr_sock_, kBacklog);
  thread_ = std::thread([this] { listen_after_bind(); });
  while (!is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return {};
}

void HttpServer::Impl::close() {
  if (!thread_.joinable()) return;
  closing_ = true;
  stop();
  thread_.join();
}

bool HttpServer::Impl::process_and_close_socket(socket_t socket) {
  Connection connection(socket);
  this_connection = &connection;
  for (int left = kRequestsPerConnection; left > 0; --left) {
    if (!connection.wait_for_request(kKeepAlive, closing_)) break;
    ++open_requests_;
    bool closed = false;
    // Nothing here has parts: httplib would cut the body and multiply it for many ranges.
    const auto whole = [](httplib::Request& request) {
      request.headers.erase("Range");
      request.ranges.clear();
    };
    const bool good = process_request(connection, left == 1 || closing_, closed, whole);
    --open_requests_;
    if (connection.closing()) connection.drain();
    if (!good || closed || connection.closing()) break;
  }
  this_connection = nullptr;
  return true;
}

// Answers what has no body, and what is refused before its body is read.
httplib::Server::HandlerResponse HttpServer::Impl::before_body(const httplib::Request& request,
                                                               httplib::Response& response) {
  this_connection->headers_read();
  const HttpRequest http = to_request(request);
  const std::string length = request.get_header_value("Content-Length");
  const bool has_body =
      request.has_header("Transfer-Encoding") || (!length.empty() && length != "0");
  const auto answer = [&](HttpReply reply) {
    if (has_body) {
      this_connection->close_after();
      response.set_header("Connection", "close");
    }
    fill(response, std::move(reply));
    return HandlerResponse::Handled;
  };
  // RFC 9112, 6.3: a proxy before this server might see another end of the body than we do, and
  // let a request pass that is hidden in it.
  const std::string coding = request.get_header_value("Transfer-Encoding");
  if (request.get_header_value_count("Content-Length") +
              request.get_header_value_count("Transfer-Encoding") >
          1 ||
      (!coding.empty() && coding != "chunked"))
    return answer(Api::error_reply(
        {400,
         "one Content-Length, or Transfer-Encoding: chunked, has to say how long the body is"}));
  if (auto refused = api_.refuse(http)) return answer(std::move(*refused));
  if (request.method != "POST") return answer(api_.handle(http));
  const bool number =
      !length.empty() && length.size() < 19 &&
      std::all_of(length.begin(), length.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!number && (!length.empty() || !has_body))
    return answer(Api::error_reply({length.empty() ? 411 : 400, "Content-Length is needed"}));
  if (number && std::stoull(length) > most_body_)
    return answer(Api::error_reply(
        {413, fmt::format("the body has {} bytes; {} at most", length, most_body_)}));
  return HandlerResponse::Unhandled;
}

void HttpServer::Impl::with_body(const httplib::Request& request, httplib::Response& response,
                                 const httplib::ContentReader& content) {
  HttpRequest http = to_request(request);
  bool too_large = false;
  // Also of chunked and compressed bodies, whose size nobody says beforehand.
  const bool whole = content([&](const char* data, std::size_t size) {
    too_large = http.body.size() + size > most_body_;
    if (!too_large) http.body.append(data, size);
    return !too_large;
  });
  if (!whole || too_large) {
    this_connection->close_after();
    response.set_header("Connection", "close");
    const ApiError error =
        too_large ? ApiError(413, fmt::format("the body has more than {} bytes", most_body_))
                  : ApiError(400, "the body did not arrive, or its encoding is wrong");
    return fill(response, Api::error_reply(error));
  }
  fill(response, api_.handle(http));
}

// Errors that httplib finds: malformed requests, headers that are too long.
void HttpServer::Impl::fill_error(const httplib::Request&, httplib::Response& response) {
  if (!response.body.empty()) return;
  if (this_connection != nullptr) this_connection->close_after();
  ApiError error(response.status, "the request is not understood");
  if (response.status == 404) error.message = "there is nothing at this path";
  if (response.status == 414) error.message = "the path is too long";
  if (response.status >= 500)
    error.message = "the server is out of memory; try fewer or shorter requests";
  response.set_content(error_body(error), "application/json");
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::listen(Api& api, const HttpOptions& options) {
  auto impl = std::make_unique<Impl>(api, options);
  TRIMPOT_TRY_VOID(impl->open(options));
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const { return impl_->port(); }
bool HttpServer::running() const { return impl_->running(); }
std::size_t HttpServer::open_requests() const { return impl_->open_requests(); }
void HttpServer::stop() { impl_->close(); }

}  // namespace trimpot::serve
