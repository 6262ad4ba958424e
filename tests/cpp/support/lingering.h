// SPDX-License-Identifier: Apache-2.0
// A TCP connection whose last close waits for its peer, who reads nothing.
#pragma once

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <vector>

#include "base/fd.h"
#include "support/eventually.h"

namespace sw::testing {

struct Lingering {
  Lingering() {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    // The far end has room for much less than the near one: however late it is served, something is left to wait for.
    const int little = 1 << 12;
    const int much = 1 << 18;
    REQUIRE(::setsockopt(listener.get(), SOL_SOCKET, SO_RCVBUF, &little, sizeof little) == 0);
    REQUIRE(::bind(listener.get(), generic, size) == 0);
    REQUIRE(::listen(listener.get(), 1) == 0);
    REQUIRE(::getsockname(listener.get(), generic, &size) == 0);
    near.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::setsockopt(near.get(), SOL_SOCKET, SO_SNDBUF, &much, sizeof much) == 0);
    REQUIRE(::connect(near.get(), generic, size) == 0);
    far.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    const linger longer{1, 120};
    REQUIRE(::setsockopt(near.get(), SOL_SOCKET, SO_LINGER, &longer, sizeof longer) == 0);
    const std::vector<char> many(1 << 16);
    while (::send(near.get(), many.data(), many.size(), MSG_DONTWAIT) > 0) {
    }
  }
  // Its peer reads all and hangs up, which ends the wait.
  void end() {
    std::vector<char> some(1 << 20);
    CHECK(eventually([&] { return ::read(far.get(), some.data(), some.size()) == 0; }));
    far.reset();
  }
  UniqueFd near, far;
};

}  // namespace sw::testing
