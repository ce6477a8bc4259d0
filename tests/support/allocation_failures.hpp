// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdio>
#include <new>

#include "support/allocation_counter.hpp"
#include "support/catch.hpp"

namespace support {

/// Promise P-36 for call(objects), where objects = make(): its first allocation fails, then its second, … until one
/// call succeeds; once alone, and then with all later ones. After each failure kept(objects) says whether they are as
/// they should be then, and the same call on the same objects, which now has memory, must make right(objects) true. New
/// objects are made for each failure, and nothing may be left of them. Prints how many allocations failed.
template <class Make, class Call, class Kept, class Right>
void check_allocation_failures(const char* name, Make&& make, Call&& call, Kept&& kept, Right&& right) {
  if (!allocations_counted()) return;  // the sanitizers of clang
  std::ptrdiff_t points = 0, changed = 0, wrong = 0, leaked = 0;
  for (const bool stays : {false, true}) {
    bool done = false;
    for (std::ptrdiff_t k = 1; !done; ++k) {
      const std::ptrdiff_t before = detail::live_bytes;
      {
        auto objects = make();
        try {
          const detail::FailureGuard guard(k, stays);
          call(objects);
          done = true;
        } catch (const std::bad_alloc&) {
        }
        if (!done) {
          changed += kept(objects) ? 0 : 1;
          call(objects);
          if (!stays) points = k;
        }
        wrong += right(objects) ? 0 : 1;
      }
      leaked += detail::live_bytes - before;
    }
  }
  std::printf("P-36 %-48s %4td allocations failed\n", name, points);
  CAPTURE(name, points);
  CHECK(points > 0);
  CHECK(changed == 0);
  CHECK(wrong == 0);
  CHECK(leaked == 0);
}

/// The same where what a failure leaves need only be fit for the same call again.
template <class Make, class Call, class Right>
void check_allocation_failures(const char* name, Make&& make, Call&& call, Right&& right) {
  check_allocation_failures(
      name, make, call, [](const auto&) { return true; }, right);
}

}  // namespace support
