// SPDX-License-Identifier: MIT
#include "support/catch.hpp"
#include "support/near.hpp"

#include <ruvector/core/error.hpp>
#include <ruvector/core/progress.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

namespace error_test {
namespace {

using ruvector::checked_size;
using ruvector::Index;
using ruvector::ShapeError;

static_assert(std::derived_from<ShapeError, std::invalid_argument>);
static_assert(std::derived_from<ruvector::ConfigError, std::invalid_argument>);
static_assert(std::derived_from<ruvector::FormatError, std::runtime_error>);

TEST_CASE("error: messages say what, the expected and the actual value") {
  CHECK_THROWS_WITH(ruvector::throw_shape_error("attend: key columns", 64, 32),
                    "attend: key columns: expected 64, got 32");
  CHECK_THROWS_WITH(ruvector::throw_shape_error("Linear", "at least one row", "0"),
                    "Linear: expected at least one row, got 0");
  CHECK_THROWS_WITH(ruvector::throw_config_error("temperature", "> 0", -0.5), "temperature: expected > 0, got -0.5");
  CHECK_THROWS_WITH(ruvector::throw_config_error("temperature", "> 0", std::nan("")),
                    "temperature: expected > 0, got nan");
  CHECK_THROWS_WITH(ruvector::throw_format_error("a.npy", "no magic at byte 0"), "a.npy: no magic at byte 0");
  CHECK_THROWS_AS(ruvector::throw_shape_error("x", 1, 2), ShapeError);
  CHECK_THROWS_AS(ruvector::throw_config_error("x", "y", 2), ruvector::ConfigError);
  CHECK_THROWS_AS(ruvector::throw_format_error("x", "y"), ruvector::FormatError);
  CHECK_NOTHROW(ruvector::check_shape("rows", 3, 3));
  CHECK_THROWS_WITH(ruvector::check_shape("rows", 3, 4), "rows: expected 3, got 4");
}

TEST_CASE("error: a size that does not fit is an error, also where the product wraps around to a small one") {
  const Index big = std::numeric_limits<Index>::max(), p31 = Index(1) << 31, p32 = Index(1) << 32, p62 = Index(1) << 62;
  CHECK(checked_size("x", 3, 4, 8) == 12);
  CHECK(checked_size("x", 0, big, 8) == 0);
  CHECK(checked_size("x", big, 0, 8) == 0);
  CHECK(checked_size("x", big, 1) == big);
  CHECK(checked_size("x", p31, p31) == p62);
  CHECK(checked_size("x", p31, p31 - 1, 2) == p62 - p31);
  CHECK(checked_size("x", big / 8, 1, 8) == big / 8);
  CHECK_THROWS_AS(checked_size("x", p31, p31, 2), ShapeError);
  CHECK_THROWS_AS(checked_size("x", p31, p31, 4), ShapeError);  // 2⁶⁴ bytes: 0
  CHECK_THROWS_AS(checked_size("x", p32, p32), ShapeError);     // 2⁶⁴: 0
  CHECK_THROWS_AS(checked_size("x", p32 + 1, p32), ShapeError);
  CHECK_THROWS_AS(checked_size("x", big, big), ShapeError);
  CHECK_THROWS_AS(checked_size("x", big / 8 + 1, 1, 8), ShapeError);
  CHECK_THROWS_AS(checked_size("x", -1, 4), ShapeError);
  CHECK_THROWS_AS(checked_size("x", 4, -1), ShapeError);
  CHECK_THROWS_AS(checked_size("x", -4, -4), ShapeError);
  CHECK_THROWS_WITH(checked_size("Matrix", -1, 4), "Matrix: expected rows >= 0, got -1");
}

TEST_CASE("progress: a report is a plain value, a callback may stop the work") {
  std::stop_source stop;
  const ruvector::Progress progress = [&](const ruvector::ProgressReport& report) {
    if (report.done == 3) stop.request_stop();
  };
  Index done = 0;
  while (done < 10 && !stop.stop_requested()) progress({.done = ++done, .total = 10, .loss = 0.5});
  CHECK(done == 3);
}

TEST_CASE("near: NaN never passes, infinities only equal themselves") {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  using support::near;
  CHECK(near(1.0, 1.0, {}));
  CHECK(near(inf, inf, {}));
  CHECK(near(1 + 1e-9, 1.0, {.relative = 1e-8}));
  CHECK(near(1e-9, 0.0, {.absolute = 1e-8}));
  CHECK(!near(1 + 1e-7, 1.0, {.relative = 1e-8}));
  const support::Tolerance wide = {.relative = inf, .absolute = inf};
  CHECK((!near(nan, 1, wide) && !near(1, nan, wide) && !near(nan, nan, wide) && !near(1, inf, wide) &&
         !near(inf, -inf, wide)));
  CHECK(support::max_error(std::vector{1.0, nan}, std::vector{1.0, 2.0}) == inf);
  CHECK(support::max_error(std::vector{1.0, 3.0}, std::vector{1.0, 2.0}) == 1);
  CHECK(support::max_error(std::vector{1.0}, std::vector{1.0, 2.0}) == inf);
  CHECK(support::first_far(std::vector{1.0, nan}, std::vector{1.0, 2.0}, wide) == 1);
  CHECK(support::first_far(std::vector{1.0f, 2.0f}, std::vector{1.0, 2.0}, {}) == -1);
  CHECK(support::first_far(std::vector{1.0}, std::vector{1.0, 2.0}, {}) == -2);
}

TEST_CASE("near: ULPs are counted across zero and across powers of two") {
  const float tiny = std::numeric_limits<float>::denorm_min();
  CHECK(support::ulp_distance(1.0f, 1.0f) == 0);
  CHECK(support::ulp_distance(0.0f, -0.0f) == 0);
  CHECK(support::ulp_distance(tiny, -tiny) == 2);
  CHECK(support::ulp_distance(1.0f, std::nextafter(1.0f, 0.0f)) == 1);
  CHECK(support::ulp_distance(-2.0, std::nextafter(-2.0, 0.0)) == 1);
  CHECK(support::ulp_distance(1.0f, 2.0f) == 1u << 23);
  CHECK(support::ulp_distance(1.0, std::nan("")) == std::numeric_limits<std::uint64_t>::max());

  const double inf = std::numeric_limits<double>::infinity();
  CHECK(support::ulp_error(1.0f, 1.0) == 0);
  CHECK(support::ulp_error(1.0f, 1.0 + 0x1p-24) == 0.5);
  CHECK(support::ulp_error(std::nextafter(1.0f, 2.0f), 1.0) == 1);
  CHECK(support::ulp_error(tiny, 0.0) == 1);
  CHECK(support::ulp_error(float(inf), inf) == 0);
  CHECK(support::ulp_error(float(inf), 1e300) == 0);
  CHECK(support::ulp_error(float(inf), 1.0) == inf);
  CHECK(support::ulp_error(1.0f, inf) == inf);
  CHECK(support::ulp_error(float(std::nan("")), 1.0) == inf);
  CHECK(support::ulp_error(1.0f, std::nan("")) == inf);
  CHECK(support::ulp_error(float(std::nan("")), std::nan("")) == 0);
}

TEST_CASE("near: same_bits tells zeros apart and lets NaN equal itself") {
  const double nan = std::nan("");
  CHECK((support::same_bits(nan, nan) && !support::same_bits(0.0, -0.0) && support::same_bits(1.0f, 1.0f)));
  CHECK(support::same_bits(std::vector{1.0, nan}, std::vector{1.0, nan}));
  CHECK(!support::same_bits(std::vector{1.0}, std::vector{1.0, 2.0}));
  CHECK(support::same_bits(std::vector<float>{}, std::vector<float>{}));
}

}  // namespace
}  // namespace error_test
