// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"

#include <functional>

namespace ruvector::inline RUVECTOR_ABI {

/// How far a long call has come.
struct ProgressReport {
  Index done = 0;      ///< units finished: batches, epochs or candidates, as the function that reports says
  Index total = 0;     ///< units in all
  double loss = 0;     ///< the mean loss since the last report; NaN where there is no loss
  double seconds = 0;  ///< since the call began
};

/// Called now and then by long calls, always on the thread that made the call; an empty one is not called. What it
/// throws ends the call and arrives at the caller.
///
/// A `std::stop_token` stands beside it in every long call, the last argument, by default one that never stops. To
/// cancel, from the callback, from another thread or (through a `volatile std::sig_atomic_t` that the callback reads)
/// from a signal handler:
///
///     std::stop_source stop;
///     fit(model, data, [&](const ProgressReport& report) { if (report.seconds > 60) stop.request_stop(); },
///         stop.get_token());
///
/// The call then ends at the next unit of work, with everything learned so far kept and no unit half applied.
using Progress = std::function<void(const ProgressReport&)>;

}  // namespace ruvector::inline RUVECTOR_ABI
