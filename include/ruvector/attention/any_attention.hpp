// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/attend.hpp"
#include "ruvector/attention/concepts.hpp"
#include "ruvector/attention/key_value_cache.hpp"
#include "ruvector/attention/types.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/workspace.hpp"

#include <any>
#include <concepts>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

namespace ruvector::inline RUVECTOR_ABI::attention {

namespace detail {

/// Nothing beside keys and values.
struct NoSide {
  struct Gradient {};
};

/// Information beside keys and values, and its gradient: the same alternative in both.
///@{
template <Real T>
using AnySide = std::variant<NoSide, EdgeFeatures<T>, GraphPositions<T>>;
template <Real T>
using AnySideGradient =
    std::variant<NoSide::Gradient, typename EdgeFeatures<T>::Gradient, typename GraphPositions<T>::Gradient>;
///@}

/// Throws ConfigError "AnyAttention: what needs a backend that is concept".
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_not_offered(std::string_view what, std::string_view needed) {
  ::ruvector::detail::raise<ConfigError>(
      "ConfigError", "AnyAttention: " + std::string(what) + " needs a backend that is " + std::string(needed));
}

/// The name of AttentionWith<Side>.
template <class Side>
[[nodiscard]] constexpr std::string_view side_concept() {
  if constexpr (requires(Side side) { side.features; })
    return "an EdgeAwareAttention";
  else
    return "a PositionalAttention";
}

/// Sees the tensors of a backend one after the other.
template <Real T>
class TensorVisitor {
 public:
  virtual void learned(std::string_view path, std::span<const T> tensor) = 0;
  virtual void buffer(std::string_view path, std::span<const T> tensor) = 0;

 protected:
  ~TensorVisitor() = default;
};

/// Prepared keys of any backend.
class HeldKeys {
 public:
  virtual ~HeldKeys() = default;
  [[nodiscard]] virtual std::unique_ptr<HeldKeys> clone() const = 0;
  [[nodiscard]] virtual Index rows() const = 0;
  /// Becomes rows of another one; false if that is of another type.
  [[nodiscard]] virtual bool select(const HeldKeys& from, std::span<const Index> ids) = 0;
};

/// Holds these prepared keys.
template <class Prepared>
class HeldPrepared final : public HeldKeys {
 public:
  Prepared keys;

  std::unique_ptr<HeldKeys> clone() const override { return std::make_unique<HeldPrepared>(*this); }
  Index rows() const override { return keys.rows(); }
  bool select(const HeldKeys& any_from, std::span<const Index> ids) override {
    const auto* from = dynamic_cast<const HeldPrepared*>(&any_from);
    if (from != nullptr) keys.select(from->keys, ids);
    return from != nullptr;
  }
};

/// What a backend prepares; one that does not prepare keeps keys as they are.
template <class A>
struct PreparedOfBackend {
  using Type = KeyValueCache<ScalarOf<A>>;
};
template <PreparedAttention A>
struct PreparedOfBackend<A> {
  using Type = typename A::Prepared;
};

/// What AnyAttention holds.
template <Real T>
class HeldAttention {
 public:
  virtual ~HeldAttention() = default;
  [[nodiscard]] virtual std::unique_ptr<HeldAttention> clone() const = 0;
  [[nodiscard]] virtual Index output_dim(Index value_dim) const = 0;
  virtual void forward(const AttentionInput<T>& in, const AnySide<T>& side, const AttentionOutput<T>& out,
                       Workspace& ws) const = 0;
  virtual void train(const AttentionInput<T>& in, const AnySide<T>& side, const AttentionOutput<T>& out,
                     std::any& saved, Rng& rng, Workspace& ws) const = 0;
  virtual void backward(const AttentionInput<T>& in, const AnySide<T>& side, const std::any& saved,
                        const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                        const AnySideGradient<T>& d_side, HeldAttention& grad, Workspace& ws) const = 0;
  virtual void scores(const AttentionInput<T>& in, const AnySide<T>& side, MatrixView<T> scores,
                      Workspace& ws) const = 0;
  virtual void prepare(MatrixView<const T> key, MatrixView<const T> value, std::unique_ptr<HeldKeys>& prepared,
                       Workspace& ws) const = 0;
  virtual void append(MatrixView<const T> key, MatrixView<const T> value, HeldKeys* prepared, Workspace& ws) const = 0;
  virtual void forward(const PreparedInput<T>& in, const HeldKeys* prepared, const AttentionOutput<T>& out,
                       Workspace& ws) const = 0;
  virtual void visit(TensorVisitor<T>& visitor) const = 0;
  [[nodiscard]] virtual bool same_type(const HeldAttention& other) const = 0;
  [[nodiscard]] virtual bool trains() const = 0;
  [[nodiscard]] virtual bool has_scores() const = 0;
  [[nodiscard]] virtual bool sees_edges() const = 0;
  [[nodiscard]] virtual bool sees_positions() const = 0;
};

/// Holds this backend.
template <AttentionBackend A>
class HeldBackend final : public HeldAttention<ScalarOf<A>> {
 public:
  using T = ScalarOf<A>;

  explicit HeldBackend(A a) : backend(std::move(a)) {}

  A backend;

  std::unique_ptr<HeldAttention<T>> clone() const override { return std::make_unique<HeldBackend>(backend); }
  Index output_dim(Index value_dim) const override { return backend.output_dim(value_dim); }

  void forward(const AttentionInput<T>& in, const AnySide<T>& any_side, const AttentionOutput<T>& out,
               Workspace& ws) const override {
    std::visit(
        [&]<class Side>(const Side& side) {
          if constexpr (!ProjectsKeys<A>) check_input(in);
          if constexpr (std::same_as<Side, NoSide>)
            backend.forward(in, out, ws);
          else if constexpr (AttentionWith<A, Side>)
            backend.forward(in, side, out, ws);
          else
            throw_not_offered("side information", side_concept<Side>());
        },
        any_side);
  }

  void train(const AttentionInput<T>& in, const AnySide<T>& any_side, const AttentionOutput<T>& out,
             [[maybe_unused]] std::any& any_saved, [[maybe_unused]] Rng& rng, Workspace& ws) const override {
    std::visit(
        [&]<class Side>(const Side& side) {
          if constexpr (!DifferentiableAttention<A>) {
            throw_not_offered("training", "a DifferentiableAttention");
          } else if constexpr (!std::same_as<Side, NoSide> && !AttentionWith<A, Side>) {
            throw_not_offered("side information", side_concept<Side>());
          } else {
            if constexpr (!ProjectsKeys<A>) check_input(in);
            using Saved = typename A::Saved;
            Saved* saved = std::any_cast<Saved>(&any_saved);
            if (saved == nullptr) saved = &any_saved.emplace<Saved>();
            constexpr bool draws = requires {
              saved->rng = rng;
            };
            if constexpr (draws) saved->rng = rng;
            if constexpr (std::same_as<Side, NoSide>)
              backend.forward(in, out, *saved, ws);
            else
              backend.forward(in, side, out, *saved, ws);
            if constexpr (draws) rng = saved->rng;
          }
        },
        any_side);
  }

  void backward(const AttentionInput<T>& in, const AnySide<T>& any_side, const std::any& any_saved,
                const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                const AnySideGradient<T>& any_gradient, HeldAttention<T>& any_grad, Workspace& ws) const override {
    std::visit(
        [&]<class Side>(const Side& side) {
          if constexpr (!DifferentiableAttention<A>) {
            throw_not_offered("backward", "a DifferentiableAttention");
          } else if constexpr (!std::same_as<Side, NoSide> && !AttentionWith<A, Side>) {
            throw_not_offered("side information", side_concept<Side>());
          } else {
            const auto* saved = std::any_cast<typename A::Saved>(&any_saved);
            if (saved == nullptr) throw_not_offered("a saved pass of another backend", "the one that made it");
            if (!same_type(any_grad)) throw_not_offered("a gradient of another backend", "the one it belongs to");
            A& grad = static_cast<HeldBackend&>(any_grad).backend;
            if constexpr (std::same_as<Side, NoSide>)
              backend.backward(in, *saved, d_out, d_in, grad, ws);
            else
              backend.backward(in, side, *saved, d_out, d_in, std::get<typename Side::Gradient>(any_gradient), grad,
                               ws);
          }
        },
        any_side);
  }

  void scores(const AttentionInput<T>& in, const AnySide<T>& any_side, MatrixView<T> scores,
              Workspace& ws) const override {
    std::visit(
        [&]<class Side>(const Side& side) {
          if constexpr (!ScoringAttention<A>)
            throw_not_offered("scores", "a ScoringAttention");
          else if constexpr (std::same_as<Side, NoSide>)
            backend.scores(in, scores, ws);
          else if constexpr (requires { backend.scores(in, side, scores, ws); })
            backend.scores(in, side, scores, ws);
          else
            throw_not_offered("side information", side_concept<Side>());
        },
        any_side);
  }

  void prepare(MatrixView<const T> key, MatrixView<const T> value, std::unique_ptr<HeldKeys>& any_prepared,
               Workspace& ws) const override {
    if (dynamic_cast<Keys*>(any_prepared.get()) == nullptr) any_prepared = std::make_unique<Keys>();
    auto& prepared = keys_of<Keys>(any_prepared.get());
    if constexpr (PreparedAttention<A>) {
      backend.prepare(key, value, prepared, ws);
    } else {
      prepared.clear(key.cols(), value.cols());
      prepared.append(key, value);
    }
  }
  void append(MatrixView<const T> key, MatrixView<const T> value, HeldKeys* any_prepared,
              [[maybe_unused]] Workspace& ws) const override {
    auto& prepared = keys_of<Keys>(any_prepared);
    if constexpr (PreparedAttention<A>)
      backend.append(key, value, prepared, ws);
    else
      prepared.append(key, value);
  }
  void forward(const PreparedInput<T>& in, const HeldKeys* any_prepared, const AttentionOutput<T>& out,
               Workspace& ws) const override {
    const auto& prepared = keys_of<const Keys>(any_prepared);
    if constexpr (PreparedAttention<A>)
      backend.forward(in, prepared, out, ws);
    else
      backend.forward(
          {.query = in.query, .key = prepared.key(), .value = prepared.value(), .mask = in.mask, .bias = in.bias}, out,
          ws);
  }

  void visit(TensorVisitor<T>& visitor) const override {
    if constexpr (Module<A>) for_each_parameter(Sink{visitor}, backend);
  }
  bool same_type(const HeldAttention<T>& other) const override {
    return dynamic_cast<const HeldBackend*>(&other) != nullptr;
  }
  bool trains() const override { return DifferentiableAttention<A>; }
  bool has_scores() const override { return ScoringAttention<A>; }
  bool sees_edges() const override { return EdgeAwareAttention<A>; }
  bool sees_positions() const override { return PositionalAttention<A>; }

 private:
  using Keys = HeldPrepared<typename PreparedOfBackend<A>::Type>;

  template <class Held, class Any>
  [[nodiscard]] static auto& keys_of(Any* any_prepared) {
    auto* held = dynamic_cast<Held*>(any_prepared);
    if (held == nullptr) throw_not_offered("keys prepared by another backend", "the one that prepared them");
    return held->keys;
  }

  struct Sink {
    TensorVisitor<T>& visitor;
    void operator()(std::string_view path, std::span<const T> tensor) const { visitor.learned(path, tensor); }
    void buffer(std::string_view path, std::span<const T> tensor) const { visitor.buffer(path, tensor); }
    template <class Manifold>
    void on(const Manifold&, std::string_view, MatrixView<const T>) const {
      static_assert(!std::same_as<Manifold, Manifold>, "AnyAttention cannot name the manifold of a backend's points");
    }
  };
};

}  // namespace detail

/// Any attention, chosen at run time: a value that holds a backend behind one virtual call. Layers and searches
/// configured at run time are the compile-time ones over AnyAttention. Copies are deep.
///
/// It offers everything, and what the backend that it holds does not (training, scores, edges, positions) throws
/// ConfigError when it is called; trains(), has_scores(), sees_edges() and sees_positions() tell beforehand. Its
/// parameters are those of the backend, under the same names; several AnyAttention walked together (a model and its
/// gradient) must hold the same type.
template <Real T>
class AnyAttention {
 public:
  using Scalar = T;  ///< what it computes in
  /// Keys may be as wide as the backend lets them be; of one that does not project, it checks the width itself.
  static constexpr bool projects_keys = true;

  /// Nothing, to be assigned: every call but copying throws ConfigError.
  AnyAttention() = default;
  /// Holds a backend. Implicit: where any attention is asked for, each is one.
  template <class A>
    requires(!std::same_as<A, AnyAttention> && AttentionBackend<A> && std::same_as<ScalarOf<A>, T>)
  AnyAttention(A backend) : held_(std::make_unique<detail::HeldBackend<A>>(std::move(backend))) {}

  /// Copies the backend.
  ///@{
  AnyAttention(const AnyAttention& other) : held_(other.held_ ? other.held_->clone() : nullptr) {}
  AnyAttention& operator=(const AnyAttention& other) {
    if (this != &other) held_ = other.held_ ? other.held_->clone() : nullptr;
    return *this;
  }
  ///@}
  /// Takes over the backend; the other holds nothing.
  ///@{
  AnyAttention(AnyAttention&&) noexcept = default;
  AnyAttention& operator=(AnyAttention&&) noexcept = default;
  ///@}
  ~AnyAttention() = default;

  /// What `backward` needs of a forward pass, of whatever backend; owned by the caller and reused, and seeded
  /// (`saved.rng`) where the backend draws.
  struct Saved {
    Rng rng{0};     ///< in place of the backend's own
    std::any held;  ///< the backend's
  };

  /// The backend, if it is of this type; otherwise null.
  ///@{
  template <AttentionBackend A>
  [[nodiscard]] A* get_if() {
    auto* held = dynamic_cast<detail::HeldBackend<A>*>(held_.get());
    return held == nullptr ? nullptr : &held->backend;
  }
  template <AttentionBackend A>
  [[nodiscard]] const A* get_if() const {
    const auto* held = dynamic_cast<const detail::HeldBackend<A>*>(held_.get());
    return held == nullptr ? nullptr : &held->backend;
  }
  ///@}

  /// Whether the backend is a DifferentiableAttention.
  [[nodiscard]] bool trains() const { return held().trains(); }
  /// Whether the backend is a ScoringAttention.
  [[nodiscard]] bool has_scores() const { return held().has_scores(); }
  /// Whether the backend is an EdgeAwareAttention.
  [[nodiscard]] bool sees_edges() const { return held().sees_edges(); }
  /// Whether the backend is a PositionalAttention.
  [[nodiscard]] bool sees_positions() const { return held().sees_positions(); }

  /// As the backend has it.
  [[nodiscard]] Index output_dim(Index value_dim) const { return held().output_dim(value_dim); }

  /// As the backend does it, to the bit; with edges or positions if it takes them.
  ///@{
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Workspace& ws) const {
    held().forward(in, detail::NoSide{}, out, ws);
  }
  void forward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out,
               Workspace& ws) const {
    held().forward(in, edges, out, ws);
  }
  void forward(const AttentionInput<T>& in, const GraphPositions<T>& at, const AttentionOutput<T>& out,
               Workspace& ws) const {
    held().forward(in, at, out, ws);
  }
  ///@}

  /// The same in training. `saved` fits itself to the backend.
  ///@{
  void forward(const AttentionInput<T>& in, const AttentionOutput<T>& out, Saved& saved, Workspace& ws) const {
    held().train(in, detail::NoSide{}, out, saved.held, saved.rng, ws);
  }
  void forward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const AttentionOutput<T>& out, Saved& saved,
               Workspace& ws) const {
    held().train(in, edges, out, saved.held, saved.rng, ws);
  }
  void forward(const AttentionInput<T>& in, const GraphPositions<T>& at, const AttentionOutput<T>& out, Saved& saved,
               Workspace& ws) const {
    held().train(in, at, out, saved.held, saved.rng, ws);
  }
  ///@}

  /// Adds gradients to d_in, d_side and grad, as the backend does. Throws ConfigError where `saved` or `grad` belong to
  /// another type of backend.
  ///@{
  void backward(const AttentionInput<T>& in, const Saved& saved, const AttentionOutputGradient<T>& d_out,
                const AttentionGradient<T>& d_in, AnyAttention& grad, Workspace& ws) const {
    held().backward(in, detail::NoSide{}, saved.held, d_out, d_in, detail::NoSide::Gradient{}, grad.held(), ws);
  }
  void backward(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, const Saved& saved,
                const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                const typename EdgeFeatures<T>::Gradient& d_edges, AnyAttention& grad, Workspace& ws) const {
    held().backward(in, edges, saved.held, d_out, d_in, d_edges, grad.held(), ws);
  }
  void backward(const AttentionInput<T>& in, const GraphPositions<T>& at, const Saved& saved,
                const AttentionOutputGradient<T>& d_out, const AttentionGradient<T>& d_in,
                const typename GraphPositions<T>::Gradient& d_at, AnyAttention& grad, Workspace& ws) const {
    held().backward(in, at, saved.held, d_out, d_in, d_at, grad.held(), ws);
  }
  ///@}

  /// The backend's scores [m×n].
  ///@{
  void scores(const AttentionInput<T>& in, MatrixView<T> scores, Workspace& ws) const {
    held().scores(in, detail::NoSide{}, scores, ws);
  }
  void scores(const AttentionInput<T>& in, const EdgeFeatures<T>& edges, MatrixView<T> scores, Workspace& ws) const {
    held().scores(in, edges, scores, ws);
  }
  void scores(const AttentionInput<T>& in, const GraphPositions<T>& at, MatrixView<T> scores, Workspace& ws) const {
    held().scores(in, at, scores, ws);
  }
  ///@}

  /// Keys and values prepared by whatever backend; see PreparedAttention.
  class Prepared {
   public:
    /// None.
    Prepared() = default;
    /// Copies the keys.
    ///@{
    Prepared(const Prepared& other) : held_(other.held_ ? other.held_->clone() : nullptr) {}
    Prepared& operator=(const Prepared& other) {
      if (this != &other) held_ = other.held_ ? other.held_->clone() : nullptr;
      return *this;
    }
    ///@}
    /// Takes over the keys; the other has none.
    ///@{
    Prepared(Prepared&&) noexcept = default;
    Prepared& operator=(Prepared&&) noexcept = default;
    ///@}
    ~Prepared() = default;

    /// Keys.
    [[nodiscard]] Index rows() const { return held_ ? held_->rows() : 0; }
    /// Becomes rows ids[0], ids[1], … of another one; keeps its memory where the backend is the same. Throws
    /// ShapeError for an id out of range.
    void select(const Prepared& from, std::span<const Index> ids) {
      if (!from.held_) detail::throw_not_offered("a selection of keys", "the one that prepared them");
      if (held_ && held_->select(*from.held_, ids)) return;
      std::unique_ptr<detail::HeldKeys> other = from.held_->clone();
      (void)other->select(*from.held_, ids);
      held_ = std::move(other);
    }

   private:
    friend class AnyAttention;
    std::unique_ptr<detail::HeldKeys> held_;
  };

  /// Prepares keys as the backend does, or copies them where it has no use for that. Keys of another backend throw
  /// ConfigError.
  ///@{
  void prepare(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    held().prepare(key, value, prepared.held_, ws);
  }
  void append(MatrixView<const T> key, MatrixView<const T> value, Prepared& prepared, Workspace& ws) const {
    held().append(key, value, prepared.held_.get(), ws);
  }
  void forward(const PreparedInput<T>& in, const Prepared& prepared, const AttentionOutput<T>& out,
               Workspace& ws) const {
    held().forward(in, prepared.held_.get(), out, ws);
  }
  ///@}

  /// Names the backend's parameters and buffers, as flat spans. Throws ConfigError unless all instances hold the same
  /// type.
  template <class Visit, class First, class... Rest>
  static void parameters(Visit&& visit, First& first, Rest&... rest) {
    if (((!first.held().same_type(rest.held())) || ...)) detail::throw_not_offered("a walk over several", "the same");
    Index number = 0;
    first.each_tensor([&](bool learned, std::string_view path, std::span<const T> tensor) {
      auto tensors = std::make_tuple(access<First>(tensor), access<Rest>(rest.tensor(number))...);
      ++number;
      std::apply(
          [&](auto&... spans) {
            if (learned)
              visit(path, spans...);
            else
              visit.buffer(path, spans...);
          },
          tensors);
    });
  }

 private:
  [[nodiscard]] const detail::HeldAttention<T>& held() const {
    if (!held_) [[unlikely]]
      detail::throw_not_offered("a call", "there");
    return *held_;
  }
  [[nodiscard]] detail::HeldAttention<T>& held() {
    if (!held_) [[unlikely]]
      detail::throw_not_offered("a call", "there");
    return *held_;
  }

  // Elements of a tensor of Self, which may be written if Self may: what it holds is never const by itself.
  template <class Self>
  [[nodiscard]] static auto access(std::span<const T> tensor) {
    if constexpr (std::is_const_v<Self>)
      return tensor;
    else
      return std::span<T>(const_cast<T*>(tensor.data()), tensor.size());
  }

  template <class Body>
  void each_tensor(Body&& body) const {
    struct Visitor final : detail::TensorVisitor<T> {
      explicit Visitor(Body& b) : body(b) {}
      void learned(std::string_view path, std::span<const T> tensor) override { body(true, path, tensor); }
      void buffer(std::string_view path, std::span<const T> tensor) override { body(false, path, tensor); }
      Body& body;
    };
    Visitor visitor(body);
    held().visit(visitor);
  }

  // Tensor number k. A walk costs O(tensors²) so, and no memory.
  [[nodiscard]] std::span<const T> tensor(Index k) const {
    std::span<const T> found;
    each_tensor([&](bool, std::string_view, std::span<const T> tensor) {
      if (k-- == 0) found = tensor;
    });
    return found;
  }

  std::unique_ptr<detail::HeldAttention<T>> held_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
