// SPDX-License-Identifier: MIT
#include "support/allocation_counter.hpp"
#include "support/catch.hpp"

#include <ruvector/core/executor.hpp>
#include <ruvector/core/workspace.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace workspace_test {
namespace {

using ruvector::ConfigError;
using ruvector::Index;
using ruvector::MatrixView;
using ruvector::ShapeError;
using ruvector::Workspace;

static_assert(!std::is_copy_constructible_v<Workspace> && std::is_nothrow_move_constructible_v<Workspace>);
static_assert(!std::is_copy_constructible_v<Workspace::Frame> && !std::is_move_constructible_v<Workspace::Frame>);

// Temporaries of a call with calls inside, of sizes around those of the blocks. Returns false if two live ones share a
// byte: each is filled with a number of its own and looked at again at the end of its frame.
bool nested_call(Workspace& workspace, int depth) {
  auto frame = workspace.frame();
  const auto bytes = frame.span<unsigned char>(100 * depth + 1);
  std::fill(bytes.begin(), bytes.end(), static_cast<unsigned char>(depth));
  const MatrixView<double> matrix = frame.matrix<double>(depth + 1, 700);
  for (Index i = 0; i < matrix.rows(); ++i) std::fill(matrix.row(i).begin(), matrix.row(i).end(), double(depth));
  bool intact = matrix.contiguous();
  if (depth > 0)
    for (int call = 0; call < 3; ++call) intact = nested_call(workspace, depth - 1) && intact;
  intact = std::all_of(bytes.begin(), bytes.end(), [&](unsigned char b) { return b == depth; }) && intact;
  for (Index i = 0; i < matrix.rows(); ++i)
    intact = std::all_of(matrix.row(i).begin(), matrix.row(i).end(), [&](double x) { return x == depth; }) && intact;
  return intact;
}

TEST_CASE("workspace: temporaries of nested frames never overlap, and all are aligned") {
  Workspace workspace;
  for (int repeat = 0; repeat < 3; ++repeat) CHECK(nested_call(workspace, 4));
  auto frame = workspace.frame();
  for (const Index n : {0, 1, 63, 64, 65, 5000, 1, 100000, 3}) {
    CAPTURE(n);
    const auto span = frame.span<float>(n);
    CHECK(static_cast<Index>(span.size()) == n);
    CHECK(reinterpret_cast<std::uintptr_t>(span.data()) % 64 == 0);
  }
  const auto matrix = frame.matrix<double>(3, 5);
  CHECK((matrix.rows() == 3 && matrix.cols() == 5 && matrix.stride() == 5));
}

TEST_CASE("workspace: the second identical call allocates nothing") {
  Workspace workspace;
  bool intact = nested_call(workspace, 5);
  const Index capacity = workspace.capacity();
  CHECK(support::allocations_in([&] { intact = nested_call(workspace, 5) && intact; }) == 0);
  CHECK(support::allocations_in([&] { intact = nested_call(workspace, 2) && nested_call(workspace, 5) && intact; }) ==
        0);
  CHECK(workspace.capacity() == capacity);
  CHECK(intact);
}

TEST_CASE("workspace: a frame gives back what was taken, and nothing else") {
  Workspace workspace;
  auto outer = workspace.frame();
  const auto kept = outer.span<int>(10);
  const int* first = nullptr;
  {
    auto inner = workspace.frame();
    first = inner.span<int>(10).data();
  }
  auto inner = workspace.frame();
  CHECK(inner.span<int>(10).data() == first);
  CHECK(first != kept.data());
}

TEST_CASE("workspace: workers have workspaces of their own, which stay where they are") {
  Workspace workspace;
  workspace.reserve_workers(2);
  Workspace* second = &workspace.worker(1);
  CHECK(&workspace.worker(0) != second);
  (void)workspace.worker(100);
  CHECK(&workspace.worker(1) == second);
  CHECK(support::allocations_in([&] { (void)workspace.worker(100); }) == 0);

  ruvector::ThreadPool pool(4);
  workspace.reserve_workers(pool.concurrency());
  std::vector<char> intact(64);
  pool.parallel_for(64, [&](Index task, Index worker) {
    intact[static_cast<std::size_t>(task)] = nested_call(workspace.worker(worker), 3);
  });
  CHECK(std::count(intact.begin(), intact.end(), 1) == 64);
  CHECK(workspace.capacity() > 0);

  const Index big = std::numeric_limits<Index>::max();
  for (const Index i : {Index(-1), Index(65536), Index(1) << 32, big, -big - 1}) {
    CAPTURE(i);
    CHECK_THROWS_AS(workspace.worker(i), ConfigError);
    if (i > 65536) CHECK_THROWS_AS(workspace.reserve_workers(i), ConfigError);
  }
}

TEST_CASE("workspace: diagnostics are kept from call to call") {
  Workspace workspace;
  CHECK(workspace.diagnostics().projected_points == 0);
  ++workspace.diagnostics().projected_points;
  CHECK(workspace.diagnostics().projected_points == 1);
}

TEST_CASE("workspace: moving takes the memory along") {
  Workspace a;
  (void)nested_call(a, 3);
  const Index capacity = a.capacity();
  Workspace b = std::move(a);
  CHECK(b.capacity() == capacity);
  CHECK((nested_call(a, 2) && nested_call(b, 3)));
  CHECK(b.capacity() == capacity);
}

TEST_CASE("workspace: impossible sizes are errors before anything is touched") {
  Workspace workspace;
  auto frame = workspace.frame();
  const Index big = std::numeric_limits<Index>::max(), p31 = Index(1) << 31, p32 = Index(1) << 32, p62 = Index(1) << 62;
  for (const Index n : {Index(-1), -big - 1, big, big / 4 + 1, p62}) {
    CAPTURE(n);
    CHECK_THROWS_AS(frame.span<float>(n), ShapeError);
  }
  CHECK_THROWS_AS(frame.span<char>(big), ShapeError);  // fits, but not after rounding up to a cache line
  CHECK_THROWS_AS(frame.span<char>(big - 63), ShapeError);
  const std::pair<Index, Index> shapes[] = {{p32, p32}, {p31, p32}, {p31, p31}, {p62, 4}, {8, p62}, {big, big},
                                            {-1, 1},    {1, -1},    {-1, -1},   {0, -1},  {big, 2}, {p32 + 1, p32 - 1}};
  for (const auto& [rows, cols] : shapes) {
    CAPTURE(rows, cols);
    CHECK_THROWS_AS(frame.matrix<float>(rows, cols), ShapeError);
  }
  CHECK(workspace.capacity() == 0);
}

TEST_CASE("workspace: when memory runs out, the same workspace does the call later") {
  Workspace workspace;
  bool intact = true;
  const auto points = support::fail_each_allocation(
      [&] {
        Workspace fresh;
        intact = nested_call(fresh, 4) && nested_call(fresh.worker(2), 2) && intact;
        intact = nested_call(workspace, 4) && intact;
      },
      [&] { CHECK(intact); });
  if (support::allocations_counted()) CHECK(points > 5);
  CHECK(support::allocations_in([&] { intact = nested_call(workspace, 4) && intact; }) == 0);
  CHECK(intact);
}

}  // namespace
}  // namespace workspace_test
