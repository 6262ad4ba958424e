// SPDX-License-Identifier: Apache-2.0
// Result<T>: a value, or an Error that says what failed and with which errno. Nothing here throws.
#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <variant>

namespace sw {

// `what` is a short verb phrase naming the object ("bind /run/switch/vm1.sock"); `code` is an errno or 0.
struct Error {
  int code = 0;
  std::string what;

  // "bind /run/switch/vm1.sock: Address already in use"
  [[nodiscard]] std::string message() const {
    return code == 0 ? what : what + ": " + std::strerror(code);  // NOLINT(concurrency-mt-unsafe)
  }
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  explicit operator bool() const { return state_.index() == 0; }
  T& operator*() { return std::get<0>(state_); }
  const T& operator*() const { return std::get<0>(state_); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }
  [[nodiscard]] const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}  // NOLINT(google-explicit-constructor)

  explicit operator bool() const { return ok_; }
  [[nodiscard]] const Error& error() const { return error_; }

 private:
  Error error_;
  bool ok_ = true;
};

}  // namespace sw
