// SPDX-License-Identifier: MIT
#include <ruvector/nn/feature_maps.hpp>
#include <ruvector/train/gradient_check.hpp>

#include "nn/row_map_laws.hpp"
#include "support/catch.hpp"
#include "support/near.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace ruvector_test_feature_maps {
namespace {

using namespace ruvector;
using nn::EluPlusOne;
using nn::FavorPlus;
using nn::Relu;
using row_map_laws::random_matrix;

static_assert(nn::FeatureMap<EluPlusOne<float>> && nn::FeatureMap<Relu<double>> && nn::FeatureMap<FavorPlus<float>>);
static_assert(!nn::RowMap<FavorPlus<float>>);

constexpr std::uint64_t seed = 22;

template <class F>
F make(Index dim, Rng& rng) {
  if constexpr (requires { F().omega; })
    return F({.dim = dim, .features = 2 * dim + 1}, rng);
  else
    return F();
}

template <class T>
struct Features {
  Matrix<T> phi;
  std::vector<T> log_scale;
  template <class F>
  Features(const F& map, MatrixView<const T> x, Workspace& ws)
      : phi(x.rows(), map.output_dim(x.cols()), T(NAN)), log_scale(std::size_t(x.rows()), T(NAN)) {
    map.forward(x, phi, log_scale, ws);
  }
};

TEMPLATE_TEST_CASE("feature_maps: gradients of the features", "[nn][gradient]", EluPlusOne<double>, Relu<double>,
                   FavorPlus<double>) {
  Rng rng(seed);
  CAPTURE(seed);
  Workspace ws;
  for (const Index n : {0, 1, 3, 300})
    for (const Index dim : {1, 2, 5, 9}) {
      if (n == 300 && dim > 1) continue;
      CAPTURE(n, dim);
      auto map = make<TestType>(dim, rng);
      auto x = random_matrix<double>(n, dim, rng);
      for (double& v : x.span()) v += v > 0 ? 0.01 : -0.01;  // away from the kink at 0
      const auto c = random_matrix<double>(n, map.output_dim(dim), rng);
      // Σ c_ij φ_ij, with the scale of x factored out as the library chooses
      const auto loss = [&](std::span<const double> moved) {
        const Features<double> f(map, {moved.data(), n, dim}, ws);
        double sum = 0;
        for (Index i = 0; i < n; ++i)
          for (Index j = 0; j < c.cols(); ++j) sum += c(i, j) * f.phi(i, j) * std::exp(f.log_scale[std::size_t(i)]);
        return sum;
      };
      const Features<double> f(map, x, ws);
      Matrix<double> d_phi = c, d_x(n, dim, 8.0);
      for (Index i = 0; i < n; ++i)
        for (double& d : d_phi.row(i)) d *= std::exp(f.log_scale[std::size_t(i)]);
      map.backward(x, f.phi, d_phi, d_x, map, ws);
      for (double& d : d_x.span()) d -= 8;  // it adds
      const auto check = train::check_gradient(loss, x.span(), d_x.span());
      INFO(train::to_string(check));
      CHECK(check.passed);
      map.backward(x, f.phi, d_phi, {}, map, ws);
    }
}

TEMPLATE_TEST_CASE("feature_maps: rows do not depend on their batch, NaN stays in its row, one call's memory suffices",
                   "[nn][law]", EluPlusOne<float>, Relu<float>, FavorPlus<float>) {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index n = 300, dim = 7;
  auto map = make<TestType>(dim, rng);
  auto x = random_matrix<float>(n, dim, rng);
  const auto d_phi = random_matrix<float>(n, map.output_dim(dim), rng);
  Workspace ws;
  const Features<float> whole(map, x, ws);
  Matrix<float> d_whole(n, dim);
  map.backward(x, whole.phi, d_phi, d_whole, map, ws);
  bool same = true;
  for (const Index size : {1, 2, 97, 257})
    for (Index first = 0; first + size <= n; first += size) {
      const Features<float> part(map, x.view().rows(first, size), ws);
      Matrix<float> d_part(size, dim);
      map.backward(x.view().rows(first, size), part.phi, d_phi.view().rows(first, size), d_part, map, ws);
      for (Index i = 0; i < size; ++i)
        same = same && support::same_bits(part.phi.row(i), whole.phi.row(first + i)) &&
               support::same_bits(d_part.row(i), d_whole.row(first + i)) &&
               support::same_bits(part.log_scale[std::size_t(i)], whole.log_scale[std::size_t(first + i)]);
    }
  CHECK(same);

  Features<float> again = whole;
  CHECK(support::allocations_in([&] {
          map.forward(x, again.phi, again.log_scale, ws);
          map.backward(x, again.phi, d_phi, d_whole, map, ws);
        }) == 0);

  x(5, 3) = NAN;
  const Features<float> with_nan(map, x, ws);
  CHECK(std::ranges::any_of(with_nan.phi.row(5), [](float v) { return std::isnan(v); }));
  for (const Index i : {4, 6}) CHECK(support::same_bits(with_nan.phi.row(i), whole.phi.row(i)));
}

TEST_CASE("feature_maps: elu + 1 is positive and continuous, relu is not negative", "[nn]") {
  const EluPlusOne<float> elu;
  const Relu<float> relu;
  Workspace ws;
  const float inf = std::numeric_limits<float>::infinity();
  Matrix<float> x(1, 9);
  const float values[] = {-80, -1, -1e-6f, -0.0f, 0, 1e-6f, 0.5f, 30, inf};
  std::ranges::copy(values, x.data());
  const Features<float> e(elu, x, ws), r(relu, x, ws);
  for (Index j = 0; j < x.size(); ++j) {
    const double v = double(values[j]);
    CAPTURE(v);
    CHECK(support::near(double(e.phi(0, j)), v > 0 ? v + 1 : std::exp(v), support::rounding<float>(3)));
    CHECK(e.phi(0, j) > 0);
    CHECK(r.phi(0, j) == std::max(0.f, values[j]));
  }
  CHECK(e.log_scale[0] == 0);
  CHECK(r.log_scale[0] == 0);
}

TEST_CASE("feature_maps: rows of omega are orthogonal in blocks, each with the length of a normal vector", "[nn]") {
  Rng rng(seed);
  CAPTURE(seed);
  for (const Index dim : {1, 2, 16, 50}) {
    const FavorPlus<double> map({.dim = dim, .features = 3 * dim + dim / 2}, rng);
    CAPTURE(dim);
    double worst = 0, squares = 0;
    for (Index i = 0; i < map.omega.rows(); ++i) {
      squares += simd::squared_norm<double>(map.omega.row(i));
      for (Index j = i / dim * dim; j < i; ++j)
        worst = std::max(worst, std::fabs(simd::dot<double>(map.omega.row(i), map.omega.row(j))) /
                                    std::sqrt(simd::squared_norm<double>(map.omega.row(i)) *
                                              simd::squared_norm<double>(map.omega.row(j))));
    }
    CHECK(worst <= double(dim) * 4 * std::numeric_limits<double>::epsilon());
    // ‖ω‖² is chi-squared with mean dim and variance 2 dim.
    const double rows = double(map.omega.rows());
    CHECK(std::fabs(squares / rows - double(dim)) <= 5 * std::sqrt(2 * double(dim) / rows));
  }
}

// Estimates of exp(q·k/√d) from `draws` independent maps of M features, for one pair: mean and root mean square error.
struct Estimate {
  double mean = 0, rms = 0, exact = 0;
  Estimate(Index dim, Index features, Index draws, Rng& rng) {
    Workspace ws;
    Matrix<double> x(2, dim);
    // Fixed rows with q·k > 0, short, so that the estimates have no heavy tail
    for (Index j = 0; j < dim; ++j) {
      x(0, j) = 0.7 / std::sqrt(double(dim)) * (j % 3 == 0 ? -1 : 1);
      x(1, j) = 0.6 / std::sqrt(double(dim)) * (j % 4 == 0 ? -1 : 1);
    }
    exact = std::exp(simd::dot<double>(x.row(0), x.row(1)) / std::sqrt(double(dim)));
    double square = 0;
    for (Index i = 0; i < draws; ++i) {
      const Features<double> f(FavorPlus<double>({.dim = dim, .features = features}, rng), x, ws);
      const double kernel = simd::dot<double>(f.phi.row(0), f.phi.row(1)) * std::exp(f.log_scale[0] + f.log_scale[1]);
      mean += kernel / double(draws);
      square += (kernel - exact) * (kernel - exact) / double(draws);
    }
    rms = std::sqrt(square);
  }
};

TEST_CASE("feature_maps: FAVOR+ is unbiased for exp(q k / sqrt d), its error falls as 1/sqrt M", "[nn]") {
  Rng rng(seed);
  CAPTURE(seed);
  constexpr Index draws = 2000;
  for (const Index dim : {1, 4, 16}) {
    double before = 0;
    for (const Index features : {16, 64, 256}) {
      CAPTURE(dim, features);
      const Estimate e(dim, features, draws, rng);
      CAPTURE(e.mean, e.exact, e.rms);
      CHECK(std::fabs(e.mean - e.exact) <= 5 * e.rms / std::sqrt(double(draws)));
      // Four times the features: half the error. Both are known to about 1/√draws = 2 %, more with heavy tails.
      if (before > 0) CHECK(std::fabs(before / e.rms - 2) <= 0.3);
      before = e.rms;
    }
  }
}

TEST_CASE("feature_maps: the scale that FAVOR+ factors out leaves the features alone and prevents overflow", "[nn]") {
  Rng rng(seed);
  CAPTURE(seed);
  Workspace ws;
  constexpr Index dim = 16, features = 64;
  const FavorPlus<float> map({.dim = dim, .features = features}, rng);
  auto x = random_matrix<float>(3, dim, rng);
  const Features<float> f(map, x, ws);
  Matrix<float> plain(3, features);
  map.forward(x, plain, {}, ws);
  for (Index i = 0; i < 3; ++i) {
    const double scale = std::exp(double(f.log_scale[std::size_t(i)]));
    for (Index j = 0; j < features; ++j)
      CHECK(double(f.phi(i, j)) * scale == Approx(double(plain(i, j))).epsilon(1e-5));
    CHECK(std::ranges::max(f.phi.row(i)) == Approx(1 / std::sqrt(float(features))));
  }
  for (float& v : x.span()) v *= 1e4f;
  const Features<float> far(map, x, ws);
  CHECK(std::ranges::all_of(far.phi.span(), [](float v) { return v >= 0 && v <= 0.126f; }));
  CHECK(std::ranges::all_of(far.log_scale, [](float v) { return std::isfinite(v) && v < -1e6f; }));
}

TEST_CASE("feature_maps: omega is saved but not learned", "[nn]") {
  Rng rng(seed), same(seed);
  const FavorPlus<float> map({.dim = 4, .features = 6}, rng), again({.dim = 4, .features = 6}, same);
  CHECK(parameter_count(map) == 0);
  CHECK(support::same_bits(map.omega.span(), again.omega.span()));
  CHECK(support::same_bits(zeros_like(map).omega.span(), map.omega.span()));
  struct Buffers {
    Index count = 0;
    void operator()(std::string_view, std::span<const float>) {}
    void buffer(std::string_view path, std::span<const float> values) {
      count += path == "omega" ? Index(values.size()) : 0;
    }
  } buffers;
  for_each_parameter(buffers, map);
  CHECK(buffers.count == 24);
}

TEST_CASE("feature_maps: shapes and options that do not fit are refused", "[nn]") {
  Rng rng(seed);
  Workspace ws;
  FavorPlus<float> map({.dim = 3, .features = 5}, rng);
  EluPlusOne<float> elu;
  Matrix<float> x(4, 3), phi(4, 5);
  float one = 0;
  const auto fake = [&](Index rows, Index cols) { return MatrixView<float>(&one, rows, cols, cols); };
  std::vector<float> log_scale(3);
  CHECK_THROWS_AS(map.forward(fake(4, 2), phi, {}, ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, fake(4, 3), {}, ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, fake(Index(1) << 60, 5), {}, ws), ShapeError);
  CHECK_THROWS_AS(map.forward(x, phi, log_scale, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, phi, fake(4, 4), x, map, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, fake(3, 5), phi, x, map, ws), ShapeError);
  CHECK_THROWS_AS(map.backward(x, phi, phi, fake(4, 2), map, ws), ShapeError);
  CHECK_THROWS_AS(elu.forward(x, fake(4, 2), {}, ws), ShapeError);
  CHECK_THROWS_AS(elu.backward(x, fake(4, 2), x, x, elu, ws), ShapeError);
  CHECK_THROWS_AS(FavorPlus<float>({.dim = 0, .features = 5}, rng), ConfigError);
  CHECK_THROWS_AS(FavorPlus<float>({.dim = 3, .features = 0}, rng), ConfigError);
  CHECK_THROWS_AS(FavorPlus<float>({.dim = 8, .features = Index(1) << 60}, rng), ShapeError);
}

}  // namespace
}  // namespace ruvector_test_feature_maps
