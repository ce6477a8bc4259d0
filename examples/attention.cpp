// SPDX-License-Identifier: MIT
#include <ruvector/attention/attend.hpp>
#include <ruvector/attention/flash.hpp>
#include <ruvector/core/random.hpp>

#include <cmath>
#include <cstdio>

// Causal attention over a sequence, and its gradients.
int main() {
  using namespace ruvector;
  Rng rng(7);
  Matrix<float> query(1000, 64), key(1000, 64), value(1000, 64), output(1000, 64);
  for (Matrix<float>* matrix : {&query, &key, &value})
    for (float& x : matrix->span()) x = rng.normal<float>();

  const attention::Flash<float> flash;  // softmax(QKᵀ/√d) V, never holding the 1000 × 1000 weights
  attention::AttentionInput<float> in{query, key, value};
  in.mask.causal = true;
  Workspace workspace;
  attention::Flash<float>::Saved saved;
  flash.forward(in, {output}, saved, workspace);

  // The gradient of ½ Σ output² by all inputs; `grad` is a module of the same type and gets the score's.
  Matrix<float> d_query(1000, 64), d_key(1000, 64), d_value(1000, 64);
  auto grad = zeros_like(flash);
  flash.backward(in, saved, {output}, {d_query, d_key, d_value}, grad, workspace);

  double square = 0;
  for (const float x : d_value.span()) square += double(x) * double(x);
  std::printf("output(999, 0) = %.4f, |d_value| = %.4f\n", double(output(999, 0)), std::sqrt(square));
}
