// SPDX-License-Identifier: MIT
#include <ruvector/geometry/poincare_ball.hpp>
#include <ruvector/search/exact_search.hpp>

#include <cmath>
#include <cstdio>

// A tree of three generations in the Poincaré disk: the root at the centre, children around it, grandchildren around
// them. Euclidean distance takes a cousin for a neighbour; the distance of the ball follows the tree.
int main() {
  using namespace ruvector;
  const geometry::PoincareBall<float> ball;  // curvature −1
  Matrix<float> points(10, 2);               // one row a point; row 0 is the root
  for (Index child = 0; child < 3; ++child) {
    const float turn = 2.1f * float(child);
    const float step[] = {2.0f * std::cos(turn), 2.0f * std::sin(turn)};
    ball.exp(points.row(0), step, points.row(1 + child));
    for (Index k = 0; k < 2; ++k) {
      const float bent = turn + (k == 0 ? 0.7f : -0.7f);
      // Tangent vectors are as short as the ball's metric makes them there: 2/λ of their length at the centre.
      const float scale = 4.0f / ball.conformal_factor(points.row(1 + child));
      const float grow[] = {scale * std::cos(bent), scale * std::sin(bent)};
      ball.exp(points.row(1 + child), grow, points.row(4 + 2 * child + k));
    }
  }

  const search::ExactSearch nearest{search::Distance{ball}, points.view()};
  search::SearchResult<float> found;  // reused from call to call
  Workspace workspace;                // scratch memory, likewise
  nearest.search(points.view().rows(4, 1), 4, found, workspace);
  for (Index i = 0; i < found.count[0]; ++i)
    std::printf("point %td at distance %.2f\n", found.ids(0, i), 0 - double(found.scores(0, i)));
}
