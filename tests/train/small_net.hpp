// SPDX-License-Identifier: MIT
#pragma once

#include <ruvector/core/matrix.hpp>
#include <ruvector/core/parameters.hpp>
#include <ruvector/core/random.hpp>
#include <ruvector/core/workspace.hpp>
#include <ruvector/nn/linear.hpp>
#include <ruvector/train/losses.hpp>
#include <ruvector/train/objective.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

// A classifier of two layers and data that it can learn, for tests of training.
namespace small_net {

using namespace ruvector;

template <class T>
struct Net {
  using Scalar = T;
  nn::Linear<T> hidden, output;

  Net(Index inputs, Index width, Index classes, Rng& rng)
      : hidden({.input = inputs, .output = width}, rng), output({.input = width, .output = classes}, rng) {}
  template <class Visit, class... Self>
  static void parameters(Visit&& visit, Self&... self) {
    visit("hidden", self.hidden...);
    visit("output", self.output...);
  }

  // h = tanh(x W + b), logits of h.
  void forward(MatrixView<const T> x, MatrixView<T> h, MatrixView<T> logits, Workspace& ws) const {
    hidden.forward(x, h, ws);
    for (Index i = 0; i < h.rows(); ++i)
      for (T& v : h.row(i)) v = std::tanh(v);
    output.forward(h, logits, ws);
  }
  void backward(MatrixView<const T> x, MatrixView<const T> h, MatrixView<const T> d_logits, Net& grad,
                Workspace& ws) const {
    auto frame = ws.frame();
    const auto d_h = frame.template matrix<T>(h.rows(), h.cols());
    for (Index i = 0; i < h.rows(); ++i) std::ranges::fill(d_h.row(i), T(0));
    output.backward(h, d_logits, d_h, grad.output, ws);
    for (Index i = 0; i < h.rows(); ++i)
      for (Index j = 0; j < h.cols(); ++j) d_h(i, j) *= 1 - h(i, j) * h(i, j);
    hidden.backward(x, d_h, {}, grad.hidden, ws);
  }
};

// Points around as many centers as there are classes.
template <class T>
struct Data {
  Matrix<T> x;
  std::vector<Index> labels;

  Data(Index n, Index inputs, Index classes, Rng& rng) : x(n, inputs), labels(std::size_t(n), 0) {
    Matrix<T> centers(classes, inputs);
    for (T& v : centers.span()) v = T(rng.normal());
    for (Index i = 0; i < n; ++i) {
      const Index y = labels[std::size_t(i)] = rng.below(classes);
      for (Index j = 0; j < inputs; ++j) x(i, j) = centers(y, j) + T(0.3 * rng.normal());
    }
  }
};

// The objective of fit(): cross-entropy, with noise on the inputs so that generators matter.
template <class T>
struct Objective {
  const Data<T>& data;
  double noise = 0.1;

  train::LossSum operator()(const Net<T>& net, std::span<const Index> samples, Net<T>& grad,
                            train::FitContext& context) const {
    auto frame = context.workspace.frame();
    const Index n = Index(samples.size());
    const auto x = frame.template matrix<T>(n, data.x.cols());
    const auto h = frame.template matrix<T>(n, net.hidden.weight.rows());
    const auto logits = frame.template matrix<T>(n, net.output.weight.rows());
    const auto d_logits = frame.template matrix<T>(n, net.output.weight.rows());
    const auto labels = frame.template span<Index>(n);
    for (Index i = 0; i < n; ++i) {
      const Index sample = samples[std::size_t(i)];
      labels[std::size_t(i)] = data.labels[std::size_t(sample)];
      for (Index j = 0; j < x.cols(); ++j)
        x(i, j) = data.x(sample, j) + (noise > 0 ? T(noise * context.rng.normal()) : T(0));
      std::ranges::fill(d_logits.row(i), T(0));
    }
    net.forward(x, h, logits, context.workspace);
    const train::LossSum loss =
        train::cross_entropy<T>(logits, labels, d_logits, context.workspace, {}, {.reduction = train::Reduction::sum});
    net.backward(x, h, d_logits, grad, context.workspace);
    return loss;
  }
};

template <class M>
bool same_bits(const M& a, const M& b) {
  bool same = true;
  for_each_parameter(
      [&](std::string_view, auto x, auto y) { same = same && std::memcmp(x.data(), y.data(), x.size_bytes()) == 0; }, a,
      b);
  return same;
}

}  // namespace small_net
