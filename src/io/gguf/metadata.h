// The keys and values of a GGUF file that is to be written, encoded as they are set.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace trimpot::gguf {

struct Value;

// Keys are written in the order in which they were first set; one that is set again keeps its
// place.
class Metadata {
 public:
  void set_uint32(std::string key, std::uint32_t value);
  void set_uint64(std::string key, std::uint64_t value);
  void set_float32(std::string key, float value);
  void set_bool(std::string key, bool value);
  void set_string(std::string key, std::string value);
  void set_strings(std::string key, std::vector<std::string> values);
  void set_int32s(std::string key, std::vector<std::int32_t> values);
  void set_float32s(std::string key, std::vector<float> values);
  void copy_value(std::string key, const Value& value);  // from a file that was read

  std::size_t size() const { return entries_.size(); }
  // `general.alignment`, or GGUF's default. Errors, here and below, name the key, not the file.
  Result<std::uint32_t> alignment() const;
  // Keys and values as they lie in a header. Errors: a key without or with more than 65535 bytes,
  // a copied value that contradicts its own type.
  Status append_to(std::vector<std::byte>& header) const;

 private:
  std::vector<std::pair<std::string, std::vector<std::byte>>> entries_;  // type tag and payload
};

}  // namespace trimpot::gguf
