// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/real.hpp>

namespace support {

/// An executor of two workers on one thread, who take turns: what they do does not depend on the machine's load.
struct Alternating {
  [[nodiscard]] ruvector::Index concurrency() const { return 2; }
  template <class Task>
  void parallel_for(ruvector::Index n, Task&& task) {
    for (ruvector::Index i = 0; i < n; ++i) task(i, i % 2);
  }
};

}  // namespace support
