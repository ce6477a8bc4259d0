// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/workspace.hpp"

#include <algorithm>
#include <span>
#include <type_traits>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// One head of one sequence: checks every size, then `backend.forward`. Throws ShapeError or ConfigError before
/// anything is written.
template <AttentionBackend A, Storage S = ScalarOf<A>>
void attend(const A& backend, const AttentionInput<ScalarOf<A>, S>& in,
            const std::type_identity_t<AttentionOutput<ScalarOf<A>>>& out, Workspace& ws) {
  check_input(in);
  check_output(in, out, backend.output_dim(in.value.cols()));
  backend.forward(in, out, ws);
}

/// Heads and batches: input b goes to output b, one task each; the result has the same bits for any executor. Heads
/// that share keys (grouped queries) repeat the views. Throws as above, before any work.
template <AttentionBackend A, Executor E>
void attend(const A& backend, std::type_identity_t<std::span<const AttentionInput<ScalarOf<A>>>> in,
            std::type_identity_t<std::span<const AttentionOutput<ScalarOf<A>>>> out, E&& executor, Workspace& ws) {
  check_shape("attend: outputs", Index(in.size()), Index(out.size()));
  for (std::size_t b = 0; b < in.size(); ++b) {
    check_input(in[b]);
    check_output(in[b], out[b], backend.output_dim(in[b].value.cols()));
  }
  ws.reserve_workers(executor.concurrency());
  executor.parallel_for(Index(in.size()), [&](Index b, Index worker) {
    backend.forward(in[std::size_t(b)], out[std::size_t(b)], ws.worker(worker));
  });
}

}  // namespace ruvector::inline RUVECTOR_ABI::attention
