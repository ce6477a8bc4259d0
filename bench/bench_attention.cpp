// SPDX-License-Identifier: MIT
#include "support/rows.hpp"

#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/dual_space.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/attention/hyperbolic.hpp>
#include <ruvector/attention/linear_attention.hpp>
#include <ruvector/core/eigen.hpp>
#include <ruvector/core/executor.hpp>
#include <ruvector/core/random.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

// Rows F1 … F10 of the table of targets: attention as a share of the peak of fused multiply-adds, forward counted as
// 4·pairs·d operations, backward as 10·pairs·d, over visible pairs.

namespace {

using namespace ruvector;
using bench::Limit;
using bench::Rows;
using Flash = attention::Flash<float>;
using Exact = EigenMatrix<double>;

Matrix<float> random_matrix(Rng& rng, Index rows, Index cols) {
  Matrix<float> x(rows, cols);
  for (float& xi : x.span()) xi = rng.normal<float>();
  return x;
}

// One head and its gradients.
struct Head {
  Matrix<float> query, key, value, out, d_out, d_query, d_key, d_value;
  attention::Mask mask;
  Flash::Saved saved;

  Head(Rng& rng, Index m, Index n, Index d, bool causal)
      : query(random_matrix(rng, m, d)),
        key(random_matrix(rng, n, d)),
        value(random_matrix(rng, n, d)),
        out(m, d),
        d_out(random_matrix(rng, m, d)),
        d_query(m, d),
        d_key(n, d),
        d_value(n, d),
        mask{.causal = causal} {}

  [[nodiscard]] attention::AttentionInput<float> input() const {
    return {.query = query, .key = key, .value = value, .mask = mask};
  }
  [[nodiscard]] attention::AttentionOutput<float> output() { return {.value = out}; }
  [[nodiscard]] double pairs() const {
    const double m = double(query.rows()), n = double(key.rows());
    return mask.causal ? m * (2 * n - m + 1) / 2 : m * n;
  }

  void forward(Workspace& ws) { attention::attend(Flash(), input(), output(), ws); }
  void forward_backward(Workspace& ws) {
    Flash grad;
    Flash().forward(input(), output(), saved, ws);
    Flash().backward(input(), saved, {.value = d_out}, {.query = d_query, .key = d_key, .value = d_value}, grad, ws);
  }

  // Of some rows, from the definition.
  [[nodiscard]] double forward_error() const {
    const Index m = query.rows(), n = key.rows(), step = std::max(Index(1), m / 16);
    double worst = 0;
    for (Index i = m % step; i < m; i += step) {
      const Index seen = mask.causal ? i + n - m + 1 : n;
      const Exact k = eigen(key).cast<double>(), v = eigen(value).cast<double>();
      Eigen::VectorXd p = k.topRows(seen) * eigen(query).row(i).cast<double>().transpose();
      p = ((p.array() - p.maxCoeff()) / std::sqrt(double(query.cols()))).exp();
      const Eigen::RowVectorXd expected = (p / p.sum()).transpose() * v.topRows(seen);
      worst = std::max(worst, bench::relative_error(out.row(i), expected));
    }
    return worst;
  }

  // Of all gradients, after one run.
  [[nodiscard]] double backward_error() const {
    const double scale = 1 / std::sqrt(double(query.cols()));
    const Exact q = eigen(query).cast<double>(), k = eigen(key).cast<double>(), v = eigen(value).cast<double>(),
                g = eigen(d_out).cast<double>();
    Exact p = q * k.transpose() * scale;
    for (Index i = 0; i < p.rows(); ++i) {
      if (mask.causal) p.row(i).tail(p.rows() - 1 - i).setConstant(-std::numeric_limits<double>::infinity());
      p.row(i) = (p.row(i).array() - p.row(i).maxCoeff()).exp();
      p.row(i) /= p.row(i).sum();
    }
    const Exact d_v = p.transpose() * g;
    Exact d_s = g * v.transpose();
    for (Index i = 0; i < p.rows(); ++i) {
      const double mean = p.row(i).dot(d_s.row(i));
      d_s.row(i) = (p.row(i).array() * (d_s.row(i).array() - mean)) * scale;
    }
    const Exact d_q = d_s * k, d_k = d_s.transpose() * q;
    return std::max(
        {bench::relative_error(d_query, d_q), bench::relative_error(d_key, d_k), bench::relative_error(d_value, d_v)});
  }
};

std::string shape(const char* what, Index n, Index d) {
  return std::string(what) + ", n = " + std::to_string(n) + ", d = " + std::to_string(d);
}

// On AVX2 the row of the table has another number.
constexpr bool wide = simd::lanes<float> == 16;
constexpr const char* forward_id = wide ? "F1" : "F9";

void forward(Rows& rows, const char* id, Index n, Index d, bool causal, double target) {
  if (!rows.wanted(id)) return;
  Rng rng(1);
  Head head(rng, n, n, d, causal);
  Workspace ws;
  rows.share(
      id, shape(causal ? "causal forward" : "forward", n, d), {target}, Limit::fma, 4.0 * head.pairs() * double(d),
      [&] { head.forward(ws); }, [&] { return head.forward_error(); });
}

void forward_backward(Rows& rows, const char* id, Index n, Index d, double target) {
  if (!rows.wanted(id)) return;
  Rng rng(1);
  Head head(rng, n, n, d, false);
  Workspace ws;
  rows.share(
      id, shape("forward and backward", n, d), {target}, Limit::fma, 14.0 * head.pairs() * double(d),
      [&] { head.forward_backward(ws); }, [&] { return head.backward_error(); });
}

// What a loop and plain Eigen make of the same.
void peers(Rows& rows, Index n, Index d) {
  if (!rows.wanted(forward_id)) return;
  Rng rng(1);
  Head head(rng, n, n, d, false);
  const float scale = 1 / std::sqrt(float(d));
  const double flops = 4.0 * head.pairs() * double(d);
  const auto error = [&] { return head.forward_error(); };
  std::vector<float> weights(static_cast<std::size_t>(n));
  rows.share(
      forward_id, shape("a plain loop", n, d), {}, Limit::fma, flops,
      [&] {
        for (Index i = 0; i < n; ++i) {
          float top = -std::numeric_limits<float>::infinity(), sum = 0;
          for (Index j = 0; j < n; ++j) {
            float dot = 0;
            for (Index c = 0; c < d; ++c) dot += head.query(i, c) * head.key(j, c);
            weights[std::size_t(j)] = dot * scale;
            top = std::max(top, dot * scale);
          }
          for (Index c = 0; c < d; ++c) head.out(i, c) = 0;
          for (Index j = 0; j < n; ++j) {
            const float weight = std::exp(weights[std::size_t(j)] - top);
            sum += weight;
            for (Index c = 0; c < d; ++c) head.out(i, c) += weight * head.value(j, c);
          }
          for (Index c = 0; c < d; ++c) head.out(i, c) /= sum;
        }
      },
      error);
  EigenMatrix<float> p(n, n);
  rows.share(
      forward_id, shape("plain Eigen", n, d), {}, Limit::fma, flops,
      [&] {
        p.noalias() = eigen(head.query) * eigen(head.key).transpose();
        for (Index i = 0; i < n; ++i) {
          p.row(i) = ((p.row(i).array() - p.row(i).maxCoeff()) * scale).exp();
          p.row(i) /= p.row(i).sum();
        }
        eigen(head.out).noalias() = p * eigen(head.value);
      },
      error);
}

// Eight heads on two threads against one.
void threads(Rows& rows, const char* what, Index n, Index d, bool causal, bool backward) {
  if (!rows.wanted("F8")) return;
  Rng rng(1);
  std::vector<Head> heads;
  for (int h = 0; h < 8; ++h) heads.emplace_back(rng, n, n, d, causal);
  std::vector<attention::AttentionInput<float>> in;
  std::vector<attention::AttentionOutput<float>> out;
  for (Head& head : heads) {
    in.push_back(head.input());
    out.push_back(head.output());
  }
  Workspace ws;
  ThreadPool two(2);
  const auto run = [&](auto&& executor) {
    if (!backward) return attention::attend(Flash(), in, out, executor, ws);
    ws.reserve_workers(executor.concurrency());
    executor.parallel_for(Index(heads.size()),
                          [&](Index h, Index worker) { heads[std::size_t(h)].forward_backward(ws.worker(worker)); });
  };
  rows.ratio(
      "F8", shape(what, n, d) + ", 8 heads, 2 threads", {1.85}, bench::wall_clock, [&] { run(Serial{}); },
      [&] { run(two); }, [&] { return backward ? heads.back().backward_error() : heads.back().forward_error(); });
}

// One query against many keys, eight heads one after the other: all of memory passes by once.
void decode(Rows& rows, Index n, Index d) {
  if (!rows.wanted("F10")) return;
  Rng rng(1);
  std::vector<Head> heads;
  for (int h = 0; h < 8; ++h) heads.emplace_back(rng, 1, n, d, false);
  Workspace ws;
  rows.share(
      "F10", shape("one query, 8 heads", n, d), {0.85}, Limit::stream,
      double(heads.size()) * 2 * double(n) * double(d) * sizeof(float),
      [&] {
        for (Head& head : heads) head.forward(ws);
      },
      [&] { return heads.back().forward_error(); });
}

// Rows of the unit ball, up to 0.9 of its radius.
Matrix<float> random_points(Rng& rng, Index rows, Index cols) {
  Matrix<float> x = random_matrix(rng, rows, cols);
  for (Index i = 0; i < rows; ++i) {
    const auto row = eigen(x).row(i);
    eigen(x).row(i) *= float(0.9 * std::pow(rng.uniform(), 0.3)) / row.norm();
  }
  return x;
}

// Attention by distance in the unit ball, after `flat` columns by inner product with half of the weight.
template <class A>
struct Curved {
  A attention;
  Index flat;
  double beta;
  Matrix<float> query, key, value, out;

  Curved(const A& a, Rng& rng, Index n, Index d, Index flat_dim, double inverse_temperature)
      : attention(a),
        flat(flat_dim),
        beta(inverse_temperature),
        query(random_points(rng, n, d)),
        key(random_points(rng, n, d)),
        value(random_points(rng, n, d)),
        out(n, d) {}

  void forward(Workspace& ws) { attention::attend(attention, {query, key, value}, {out}, ws); }

  // Of some rows, from the definition.
  [[nodiscard]] double error() const {
    const Index n = query.rows(), h = query.cols() - flat, step = n / 16;
    const Exact q = eigen(query).cast<double>(), k = eigen(key).cast<double>(), v = eigen(value).cast<double>();
    double worst = 0;
    for (Index i = 0; i < n; i += step) {
      Eigen::VectorXd p(n);
      for (Index j = 0; j < n; ++j) {
        const double delta = (q.row(i).tail(h) - k.row(j).tail(h)).squaredNorm();
        const double product = (1 - q.row(i).tail(h).squaredNorm()) * (1 - k.row(j).tail(h).squaredNorm());
        p[j] = -beta * std::acosh(1 + 2 * delta / product);
        if (flat > 0) p[j] = p[j] / 2 + q.row(i).head(flat).dot(k.row(j).head(flat)) / std::sqrt(double(flat)) / 2;
      }
      p = (p.array() - p.maxCoeff()).exp();
      p /= p.sum();
      Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(h);
      double mass = 0;
      for (Index j = 0; j < n; ++j) {
        const double lambda = 2 / (1 - v.row(j).tail(h).squaredNorm());
        sum += p[j] * lambda * v.row(j).tail(h);
        mass += p[j] * (lambda - 1);
      }
      Eigen::RowVectorXd expected(query.cols());
      expected << p.transpose() * v.leftCols(flat), sum / (mass + std::sqrt(mass * mass - sum.squaredNorm()));
      worst = std::max(worst, bench::relative_error(out.row(i), expected));
    }
    return worst;
  }
};

template <class A>
void curved(Rows& rows, const char* id, const char* what, const A& attention, Index d, Index flat, double beta,
            double target, bool near = false) {
  if (!rows.wanted(id)) return;
  const Index n = 2048;
  Rng rng(1);
  Curved<A> head(attention, rng, n, d, flat, beta);
  if (near)  // 1/64 of the pairs: queries and keys crowd about 64 points
    for (Index i = 64; i < n; ++i) {
      eigen(head.key).row(i) = eigen(head.key).row(i % 64) + 1e-4F * eigen(head.value).row(i);
      eigen(head.query).row(i) = eigen(head.key).row(i % 64) - 1e-4F * eigen(head.value).row(i);
    }
  Workspace ws;
  rows.share(
      id, shape(what, n, d), {target}, Limit::fma, 4.0 * double(n) * double(n) * double(d), [&] { head.forward(ws); },
      [&] { return head.error(); });
}

void hyperbolic(Rows& rows) {
  using attention::HyperbolicFlash;
  const auto ball = [](double beta) {
    return attention::make_hyperbolic<HyperbolicFlash<float>>({.beta = beta, .input = attention::Points::on_manifold});
  };
  for (const Index d : {64, 128}) {
    curved(rows, "F5", "hyperbolic forward", ball(0.7), d, 0, 0.7, d == 64 ? 0.60 : 0.70);
    curved(rows, "F5", "hyperbolic, 1/64 of pairs near", ball(0.7), d, 0, 0.7, 0, true);
    curved(rows, "F6", "hyperbolic, integer beta/sqrt(c)", ball(2), d, 0, 2, 0.75);
  }
  using attention::DualSpaceFlash;
  curved(rows, "F7", "dual space, 64 + 64",
         attention::make_dual_space<DualSpaceFlash<float>>(
             {.euclidean_dim = 64, .euclidean_value_dim = 64, .input = attention::Points::on_manifold}),
         128, 64, 1, 0.70);
}

// Linear attention against itself at half the length, and against Flash.
void linear(Rows& rows, Index n, Index d) {
  if (!rows.wanted("L1")) return;
  using Linear = attention::LinearAttention<nn::EluPlusOne<float>>;
  Rng rng(1);
  for (const bool causal : {false, true}) {
    Head head(rng, n, n, d, causal), half(rng, n / 2, n / 2, d, causal);
    Workspace ws;
    const auto run = [&](Head& h) { attention::attend(Linear(), h.input(), h.output(), ws); };
    const auto error = [&] {
      run(head);
      const Exact k = eigen(head.key).cast<double>().unaryExpr([](double x) { return x > 0 ? x + 1 : std::exp(x); }),
                  v = eigen(head.value).cast<double>();
      double worst = 0;
      for (Index i = n - 1; i >= 0; i -= n / 8) {
        const Index seen = causal ? i + 1 : n;
        const Eigen::VectorXd q = eigen(head.query).row(i).cast<double>().transpose().unaryExpr([](double x) {
          return x > 0 ? x + 1 : std::exp(x);
        });
        const Eigen::VectorXd w = k.topRows(seen) * q;
        const Eigen::RowVectorXd expected = w.transpose() * v.topRows(seen) / (w.sum() + 1e-6);
        worst = std::max(worst, bench::relative_error(head.out.row(i), expected));
      }
      return worst;
    };
    const char* what = causal ? "causal linear" : "linear";
    rows.ratio(
        "L1", shape(what, n, d) + " against half of n", {2.1, true}, bench::cpu_clock, [&] { run(head); },
        [&] { run(half); }, error);
    rows.ratio(
        "L1", shape("flash", n, d) + " against " + what, {5}, bench::cpu_clock, [&] { head.forward(ws); },
        [&] { run(head); }, error);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Rows rows(argc, argv);
  forward(rows, forward_id, 512, 64, false, 0.84);
  forward(rows, forward_id, 1024, 64, false, wide ? 0.87 : 0.84);
  forward(rows, forward_id, 4096, 64, false, wide ? 0.87 : 0.84);
  peers(rows, 1024, 64);
  for (const Index n : {1024, 4096}) forward(rows, "F2", n, 128, false, 0.88);
  for (const Index d : {64, 128})
    for (const Index n : {2048, 4096}) forward(rows, "F3", n, d, true, 0.82);
  for (const Index d : {64, 128}) forward_backward(rows, "F4", 2048, d, 0.85);
  threads(rows, "forward", 1024, 64, false, false);
  threads(rows, "forward", 1024, 128, false, false);
  threads(rows, "causal forward", 2048, 64, true, false);
  threads(rows, "forward and backward", 2048, 64, false, true);
  hyperbolic(rows);
  decode(rows, 100'000, 128);
  linear(rows, 16384, 64);
  return rows.finish();
}
