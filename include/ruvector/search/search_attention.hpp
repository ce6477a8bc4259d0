// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/any_attention.hpp"
#include "ruvector/attention/dual_space.hpp"
#include "ruvector/attention/flash.hpp"
#include "ruvector/attention/gat_v2.hpp"
#include "ruvector/attention/hyperbolic.hpp"
#include "ruvector/attention/linear_attention.hpp"
#include "ruvector/attention/mixture_of_experts.hpp"
#include "ruvector/attention/scaled_dot_product.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/search/config.hpp"
#include "ruvector/search/search_layer.hpp"

#include <utility>

namespace ruvector::inline RUVECTOR_ABI::search {

/// The attention that a config asks for, for the layers of a search over rows of `dim` elements:
///
///     const auto attention = search::make_search_attention<float>(config, dim, rng);
///     search::SearchLayer<attention::AnyAttention<float>> layer({.dim = dim}, attention, rng);
///
/// Rows are tangent vectors to the hyperbolic modes, dual_space halves them. A mixture's scores are normalised over the
/// candidates of a step: it can be searched with, but fit_search refuses it. Throws ConfigError for dim < 1, for one
/// column in two spaces, a curvature that is not positive, and `use_flash` where there is no tiled form.
template <Real T>
[[nodiscard]] attention::AnyAttention<T> make_search_attention(const SearchConfig& config, Index dim, Rng& rng) {
  using Any = attention::AnyAttention<T>;
  if (dim < 1) throw_config_error("make_search_attention: dim", ">= 1", double(dim));
  const double curvature = double(config.hyperbolic_curvature.value_or(1.0f));
  const attention::HyperbolicConfig hyperbolic{.curvature = curvature};
  const auto no_flash = [&] {
    if (config.use_flash) throw_config_error("make_search_attention: use_flash in this mode", "false", 1);
  };
  switch (config.attention_mode) {
    case AttentionMode::hyperbolic:
      if (config.use_flash) return attention::make_hyperbolic<attention::HyperbolicFlash<T>>(hyperbolic);
      return attention::make_hyperbolic<attention::Hyperbolic<T>>(hyperbolic);
    case AttentionMode::dual_space: {
      if (dim < 2) throw_config_error("make_search_attention: dim of two spaces", ">= 2", double(dim));
      const attention::DualSpaceConfig dual{
          .euclidean_dim = dim / 2, .euclidean_value_dim = dim / 2, .curvature = curvature};
      if (config.use_flash) return attention::make_dual_space<attention::DualSpaceFlash<T>>(dual);
      return attention::make_dual_space<attention::DualSpace<T>>(dual);
    }
    case AttentionMode::edge_featured:
      no_flash();
      return attention::GatV2<T>({.source_dim = dim, .edge_dim = search_features, .channels = dim}, rng);
    case AttentionMode::moe: {
      no_flash();
      using Router = attention::NoisyTopKRouter<T>;
      attention::MixtureOfExpertsList<Router, Any> mixture{
          Router({.dim = dim, .experts = 3, .noise = false, .balance = 0, .z = 0}, rng), {}};
      mixture.experts = {Any(attention::ScaledDotProduct<T>()),
                         Any(attention::make_hyperbolic<attention::Hyperbolic<T>>(hyperbolic)),
                         Any(attention::LinearAttention<nn::EluPlusOne<T>>())};
      return mixture;
    }
    case AttentionMode::linear:
      no_flash();
      return attention::LinearAttention<nn::EluPlusOne<T>>();
    case AttentionMode::flash:
      return attention::Flash<T>();
    case AttentionMode::standard:
      break;
  }
  if (config.use_flash) return attention::Flash<T>();
  return attention::ScaledDotProduct<T>();
}

}  // namespace ruvector::inline RUVECTOR_ABI::search
