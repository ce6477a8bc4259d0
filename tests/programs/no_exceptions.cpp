// SPDX-License-Identifier: MIT

// Compiled with -fno-exceptions: every header compiles, and an error reaches the program's handler with its kind and
// text before anything else happens.
#include <cstdio>
#include <cstdlib>
#include <cstring>

void on_error(const char* kind, const char* message);
#define RUVECTOR_ERROR_HANDLER on_error

#include "all_headers.hpp"

#ifdef __cpp_exceptions
#error "this program is about -fno-exceptions"
#endif

void on_error(const char* kind, const char* message) {
  const bool right =
      std::strcmp(kind, "ShapeError") == 0 && std::strstr(message, "columns: expected 3, got 2") != nullptr;
  std::printf("%s: %s\n", kind, message);
  std::_Exit(right ? 0 : 1);
}

int main() {
  const ruvector::Matrix<float> from(2, 3);
  ruvector::Matrix<float> to(2, 2);
  ruvector::copy(ruvector::MatrixView<const float>(to), ruvector::MatrixView<float>(to));
  ruvector::copy(from.view(), to.view());
  std::puts("the handler was not called");
  return 1;
}
