// SPDX-License-Identifier: MIT
#include "support/rows.hpp"

#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/flash.hpp>
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
      "F8", shape(what, n, d) + ", 8 heads, 2 threads", {1.85}, [&] { run(Serial{}); }, [&] { run(two); },
      [&] { return backward ? heads.back().backward_error() : heads.back().forward_error(); });
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
  decode(rows, 100'000, 128);
  return rows.finish();
}
