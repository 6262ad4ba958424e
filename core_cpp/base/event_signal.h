// SPDX-License-Identifier: Apache-2.0
// signal_eventfd, drain_eventfd: add 1 to an eventfd that a peer holds as well, or empty it, and never wait.
//
// Theory of operation. write() to an eventfd waits when its counter is full and O_NONBLOCK is not set, and both are the
// peer's to choose at any moment, since a descriptor's flags belong to all who hold it: whoever looks at them first and
// then writes can still be caught in between, for as long as the peer likes. What never waits is the kernel's own way of
// signalling: a full counter stays full. Asynchronous I/O uses it to say that a request is done (IOCB_FLAG_RESFD), so
// each signal is a read of nothing, whose end the kernel reports to the eventfd, before io_submit() returns. Reads have a
// flag for it (RWF_NOWAIT).
//
// That takes three times as long as write(). So threads that a StallGuard watches write(), until it had to take one of them
// out of a write() to an eventfd of that peer: a peer can hold up a thread once, for as long as the guard is patient.
//
// One context a thread, made with its first signal. A system that has none left (fs.aio-max-nr) or forbids the call
// makes us write(); then the old rule holds that whoever takes an eventfd from a peer makes it non-blocking and looks
// again from time to time.
#pragma once

#include <atomic>
#include <cstdint>

namespace sw {

// Whoever holds some of our eventfds as well. Outlives its connections.
struct EventPeer {
  std::atomic<bool> made_us_wait{false};  // set by whichever thread it was, for good
};

// False: there is no such eventfd, or (where we must write) its counter is full. Any thread.
bool signal_eventfd(int fd);
// The same for a thread that may be watched.
bool signal_eventfd(int fd, EventPeer& peer);

// What was in it, 0 if nothing was. Any thread.
uint64_t drain_eventfd(int fd);

// Can this thread signal without waiting, whatever the peer does?
bool signals_never_wait();

}  // namespace sw
