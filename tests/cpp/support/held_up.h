// SPDX-License-Identifier: Apache-2.0
// An object that takes as long to let go of as a test likes: what is given to a Reaper after it waits behind it.
#pragma once

#include <atomic>
#include <memory>

namespace sw::testing {

class HeldUp {
 public:
  HeldUp() : state_(std::make_shared<State>()) {}
  ~HeldUp() { release(); }
  HeldUp(const HeldUp&) = delete;
  HeldUp& operator=(const HeldUp&) = delete;

  // What to drop. `ending` is called by the thread that lets go of it, before it waits.
  template <class Ending>
  [[nodiscard]] std::shared_ptr<const void> object(Ending ending) const {
    return {static_cast<const void*>(state_.get()), [state = state_, ending](const void*) {
              ending();
              state->reached = true;
              state->reached.notify_all();
              state->released.wait(false);
            }};
  }
  [[nodiscard]] std::shared_ptr<const void> object() const {
    return object([] {});
  }
  [[nodiscard]] bool reached() const { return state_->reached; }
  void release() {
    state_->released = true;
    state_->released.notify_all();
  }

 private:
  struct State {
    std::atomic<bool> reached{false};
    std::atomic<bool> released{false};
  };
  const std::shared_ptr<State> state_;
};

}  // namespace sw::testing
