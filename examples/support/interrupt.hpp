// SPDX-License-Identifier: MIT
#pragma once

#include <sys/time.h>
#include <cmath>
#include <csignal>
#include <stop_token>

namespace examples {

namespace detail {

inline volatile std::sig_atomic_t interrupt_requested = 0;
extern "C" inline void handle_interrupt(int signal) {
  interrupt_requested = 1;
  std::signal(signal, SIG_DFL);
}

}  // namespace detail

/// From now on Ctrl-C, and the end of so many seconds (0: never), ask the program to stop, where it can go on later; a
/// second Ctrl-C ends it.
inline void handle_interrupts(double budget = 0) {
  std::signal(SIGINT, detail::handle_interrupt);
  if (budget <= 0) return;
  std::signal(SIGALRM, detail::handle_interrupt);
  const auto microseconds = static_cast<long long>(std::ceil(budget * 1e6));
  itimerval timer{};
  timer.it_value.tv_sec = static_cast<time_t>(microseconds / 1000000);
  timer.it_value.tv_usec = static_cast<suseconds_t>(microseconds % 1000000);
  ::setitimer(ITIMER_REAL, &timer, nullptr);
}

/// Whether Ctrl-C was pressed, or the time is over.
[[nodiscard]] inline bool interrupted() {
  return detail::interrupt_requested != 0;
}

/// Requests a stop if `interrupted`: to be called from progress callbacks.
inline void pass_on_interrupt(std::stop_source& stop) {
  if (interrupted()) stop.request_stop();
}

}  // namespace examples
