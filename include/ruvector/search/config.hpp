// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/core/real.hpp"
#include "ruvector/search/filter.hpp"

#include <optional>
#include <span>

namespace ruvector::inline RUVECTOR_ABI::search {

/// How a learned search scores candidates: which attention its layers have (search/search_attention.hpp makes it).
enum class AttentionMode {
  standard,       ///< scaled dot product
  hyperbolic,     ///< distance in the Poincaré ball
  dual_space,     ///< half of the columns flat, half hyperbolic
  edge_featured,  ///< GATv2, which sees the features of candidates
  moe,            ///< a mixture of standard, hyperbolic and linear
  flash,          ///< scaled dot product in tiles
  linear,         ///< features of a kernel instead of pairs
};

/// What a hierarchical search is asked for, and how far it looks.
struct SearchConfig {
  AttentionMode attention_mode = AttentionMode::standard;    ///< of the layers that `make_search_attention` is for
  std::optional<float> hyperbolic_curvature = std::nullopt;  ///< c > 0 of the hyperbolic modes; default 1
  float temperature = 1;     ///< τ > 0 of the softmax over all candidates, where `softmax` is set
  bool use_flash = false;    ///< the tiled form of the mode; ConfigError where it has none
  Index k = 10;              ///< places
  Index ef = 64;             ///< how many of the best so far are kept on level 0, at least k
  Index beam = 8;            ///< nodes kept on each level above: 1 is the greedy descent of HNSW
  Index rounds = 64;         ///< steps on each of these levels, at most: it is left where the beam no longer changes
  bool softmax = false;      ///< weights, log-sum-exp, mass and mean of all candidates; of levels that are scanned
  bool renormalize = false;  ///< the weights of the k sum to 1
  bool state = false;        ///< what the query has become, `SearchResult::state`
  bool trace = false;        ///< the way that was taken, `SearchResult::trace`
  std::span<const Filter> filters = {};  ///< by id: none, one for all queries, or one each
};

}  // namespace ruvector::inline RUVECTOR_ABI::search
