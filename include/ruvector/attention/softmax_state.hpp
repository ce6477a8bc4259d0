// SPDX-License-Identifier: MIT
#pragma once

#include "ruvector/attention/softmax.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/ordered_sum.hpp"
#include "ruvector/core/real.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

namespace ruvector::inline RUVECTOR_ABI::attention {

/// The softmax of m queries over some of the keys, still open: it can be continued with more keys, merged with the
/// states of others, written to bytes, and in the end be finished (`Tiled::accumulate`, `finish`). So shards, machines
/// and streams of keys compose. Keys stand in leaves of 4096 by absolute index; merging is exact, commutative and
/// associative for disjoint ranges (Milakov & Gimelshein 2018, sec. 3.1, for one pair), and the result has the bits of
/// one pass over all keys. Memory O(m v log n).
template <Real T>
class SoftmaxState {
 public:
  using Scalar = T;  ///< what it computes in

  /// Nothing seen. `has_mass`: as the mean says, `Tiled::make_state` knows. `leaf`: for tests. Throws ShapeError for
  /// impossible sizes, ConfigError unless leaf is a positive multiple of 64.
  SoftmaxState(Index queries, Index value_dim, bool has_mass, Index leaf = key_leaf)
      : shape_{queries, value_dim, has_mass}, sum_(Monoid{shape_}, checked_leaf(leaf)) {
    (void)checked_size("SoftmaxState", queries, value_dim, Index(sizeof(T)));
  }

  /// m.
  [[nodiscard]] Index queries() const { return shape_.queries; }
  /// v.
  [[nodiscard]] Index value_dim() const { return shape_.value_dim; }
  /// Whether no key was seen.
  [[nodiscard]] bool empty() const { return sum_.empty(); }
  /// The key with which to go on in an incomplete leaf, or 0.
  [[nodiscard]] Index open_end() const { return sum_.open_end(); }

  /// Throws ShapeError unless the state is of this many queries and columns and knows the masses of the mean.
  void check(Index queries, Index value_dim, bool has_mass) const {
    check_shape("SoftmaxState: queries", shape_.queries, queries);
    check_shape("SoftmaxState: columns of value", shape_.value_dim, value_dim);
    check_shape("SoftmaxState: sums of masses", Index(shape_.has_mass), Index(has_mass));
  }

  /// Adds all keys that `other` has seen. Throws ShapeError for other sizes, ConfigError if a leaf is in both or both
  /// have an incomplete one; then nothing was changed.
  void merge(const SoftmaxState& other) {
    check(other.queries(), other.value_dim(), other.shape_.has_mass);
    sum_.merge(other.sum_);
  }

  /// Calls accumulate(sums of all queries, begin, end) for `count` keys from first_key on, counted from 0, a leaf at a
  /// time. What `Tiled::accumulate` is made of. Throws ConfigError as it says.
  template <class Accumulate>
  void add(Index first_key, Index count, Accumulate&& accumulate) {
    if (first_key % detail::tile_keys != 0)
      throw_config_error("SoftmaxState: first key", "a multiple of 64", double(first_key));
    sum_.add(first_key, first_key + count, [&](State& state, Index begin, Index end) {
      accumulate(state.sums(), begin - first_key, end - first_key);
    });
  }

  /// The sums over all keys seen; valid until the next call.
  [[nodiscard]] detail::BlockState<T> total() {
    sum_.total(total_);
    return total_.sums();
  }

  /// The state as bytes, with version, sizes and a checksum (FNV-1a, 64 bit), in the byte order of the machine.
  [[nodiscard]] std::vector<std::byte> to_bytes() const {
    Writer out;
    out.put(magic);
    out.put(std::uint32_t(sizeof(T)));
    out.put(std::uint32_t(simd::lanes<T>));
    for (const Index n : {shape_.queries, shape_.value_dim, Index(shape_.has_mass), sum_.leaf(), sum_.open_end()})
      out.put(std::int64_t(n));
    std::int64_t parts = 0;
    sum_.for_each([&](const State&, Index, int) { ++parts; });
    out.put(parts);
    sum_.for_each([&](const State& state, Index first, int level) {
      out.put(std::int64_t(first));
      out.put(std::int64_t(level));
      state.for_each([&](std::span<const T> numbers) { out.put_all(numbers); });
    });
    out.put(checksum(out.bytes));
    return std::move(out.bytes);
  }

  /// Reads what to_bytes wrote. Throws FormatError, naming what is wrong, for any other bytes; memory stays below a
  /// small multiple of theirs. Written with another width of registers, sums are read as they are, to rounding.
  [[nodiscard]] static SoftmaxState from_bytes(std::span<const std::byte> bytes) {
    Reader in{bytes};
    if (bytes.size() < sizeof(std::uint64_t)) fail("truncated");
    in.bytes = bytes.first(bytes.size() - sizeof(std::uint64_t));
    std::uint64_t expected;
    std::memcpy(&expected, bytes.data() + in.bytes.size(), sizeof expected);
    if (in.template get<std::array<char, 8>>() != magic) fail("not a softmax state of this version");
    if (checksum(in.bytes) != expected) fail("checksum does not match");
    if (in.template get<std::uint32_t>() != sizeof(T)) fail("numbers of another type");
    const auto lanes = Index(in.template get<std::uint32_t>());
    const Index queries = in.size(), value_dim = in.size(), has_mass = in.size(), leaf = in.size(),
                open_end = in.size(), parts = in.size();
    if (lanes < 1 || lanes > 64 || has_mass > 1 || leaf < 1 || leaf % detail::tile_keys != 0) fail("impossible sizes");
    // Numbers of a part, checked against what is left before anything of that size is allocated.
    const double numbers = double(queries) * (2 + double(lanes) * double(1 + has_mass) + double(value_dim));
    constexpr double largest = 0x1p48;
    if (parts > 0 && (numbers > largest || double(parts) > largest)) fail("impossible sizes");
    if (parts == 0 && double(queries) * double(value_dim) > largest) fail("impossible sizes");
    if (double(parts) * (16 + numbers * double(sizeof(T))) != double(in.bytes.size() - in.at)) fail("wrong length");
    SoftmaxState state(queries, value_dim, has_mass == 1, leaf);
    for (Index p = 0; p < parts; ++p) {
      const Index first = in.size();
      const auto level = int(in.template get<std::int64_t>());
      if (!state.sum_.can_restore(first, level, open_end)) fail("not a part of the tree");
      state.sum_.restore(first, level, open_end, [&](State& part) { part.read(in, lanes); });
    }
    if (state.open_end() != open_end) fail("no incomplete leaf");
    return state;
  }

 private:
  struct Shape {
    Index queries, value_dim;
    bool has_mass;
  };

  struct State {
    Vector<T> reference, rank_reference, sum, mass;
    Matrix<T> value;

    [[nodiscard]] detail::BlockState<T> sums() {
      return {reference.span(), rank_reference.span(), sum.span(), mass.span(), value};
    }
    template <class F>
    void for_each(F&& f) const {
      f(reference.span());
      f(rank_reference.span());
      f(sum.span());
      f(mass.span());
      f(value.span());
    }
    template <class In>
    void read(In& in, Index lanes) {
      in.get_all(reference.span());
      in.get_all(rank_reference.span());
      for (Vector<T>* sums : {&sum, &mass}) {
        if (sums->empty()) continue;
        for (Index i = 0; i < reference.size(); ++i)
          for (Index lane = 0; lane < lanes; ++lane)
            (*sums)[i * simd::lanes<T> + lane % simd::lanes<T>] += in.template get<T>();
      }
      in.get_all(value.span());
    }
  };

  struct Monoid {
    Shape shape;

    void clear(State& state) const {
      if (state.reference.size() != shape.queries || state.value.cols() != shape.value_dim) {
        const Index sums = checked_size("SoftmaxState: sums", shape.queries, simd::lanes<T>, Index(sizeof(T)));
        // All or nothing, should memory run out.
        state = State{Vector<T>(shape.queries), Vector<T>(shape.queries), Vector<T>(sums),
                      Vector<T>(shape.has_mass ? sums : 0), Matrix<T>(shape.queries, shape.value_dim)};
      }
      state.sums().clear();
    }
    void merge(State& left, const State& right) const { left.sums().merge(const_cast<State&>(right).sums()); }
  };

  static constexpr std::array<char, 8> magic = {'R', 'V', 's', 't', 'a', 't', 'e', '1'};

  struct Writer {
    std::vector<std::byte> bytes;
    template <class V>
    void put(const V& value) {
      const auto* from = reinterpret_cast<const std::byte*>(&value);
      bytes.insert(bytes.end(), from, from + sizeof value);
    }
    void put_all(std::span<const T> numbers) {
      const auto from = std::as_bytes(numbers);
      bytes.insert(bytes.end(), from.begin(), from.end());
    }
  };
  struct Reader {
    std::span<const std::byte> bytes;
    std::size_t at = 0;
    template <class V>
    [[nodiscard]] V get() {
      V value;
      if (bytes.size() - at < sizeof value) fail("truncated");
      std::memcpy(&value, bytes.data() + at, sizeof value);
      at += sizeof value;
      return value;
    }
    [[nodiscard]] Index size() {
      const auto n = get<std::int64_t>();
      if (n < 0) fail("negative size");
      return Index(n);
    }
    void get_all(std::span<T> numbers) {
      if (bytes.size() - at < numbers.size_bytes()) fail("truncated");
      if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data() + at, numbers.size_bytes());
      at += numbers.size_bytes();
    }
  };

  [[noreturn]] static void fail(std::string_view what) { throw_format_error("SoftmaxState", what); }
  [[nodiscard]] static std::uint64_t checksum(std::span<const std::byte> bytes) {
    std::uint64_t hash = 0xcbf29ce484222325u;
    for (const std::byte b : bytes) hash = (hash ^ std::uint64_t(b)) * 0x100000001b3u;
    return hash;
  }
  [[nodiscard]] static Index checked_leaf(Index leaf) {
    if (leaf < 1 || leaf % detail::tile_keys != 0)
      throw_config_error("SoftmaxState: leaf", "a positive multiple of 64", double(leaf));
    return leaf;
  }

  Shape shape_;
  OrderedSum<State, Monoid> sum_;
  State total_;
};

}  // namespace ruvector::inline RUVECTOR_ABI::attention
