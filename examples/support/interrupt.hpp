// SPDX-License-Identifier: MIT
#pragma once

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

/// From now on Ctrl-C asks the program to stop, where it can go on later; a second one ends it.
inline void handle_interrupts() {
  std::signal(SIGINT, detail::handle_interrupt);
}

/// Whether Ctrl-C was pressed.
[[nodiscard]] inline bool interrupted() {
  return detail::interrupt_requested != 0;
}

/// Requests a stop if Ctrl-C was pressed: to be called from progress callbacks.
inline void pass_on_interrupt(std::stop_source& stop) {
  if (interrupted()) stop.request_stop();
}

}  // namespace examples
