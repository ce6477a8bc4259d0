// SPDX-License-Identifier: MIT
// g++ -O1 make_hnswlib.cpp -o make && ./make index.hnswlib: an index of 24 points (i % 5, i / 5, i) by Debian's hnswlib
// 0.6.2, labels 7 i + 1, point 3 deleted.
#include <hnswlib/hnswlib.h>

int main(int, char** arguments) {
  hnswlib::L2Space space(3);
  hnswlib::HierarchicalNSW<float> index(&space, 30, 3, 20);
  for (int i = 0; i < 24; ++i) {
    const float point[] = {float(i % 5), float(i / 5), float(i)};
    index.addPoint(point, hnswlib::labeltype(7 * i + 1));
  }
  index.markDelete(7 * 3 + 1);
  index.saveIndex(arguments[1]);
}
