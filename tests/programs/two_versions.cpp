// SPDX-License-Identifier: MIT

// Two versions of the library in one process: each part keeps its own types and its own code.
#include <cstdio>
#include <cstring>

extern "C" const char* this_version(double* result);
extern "C" const char* other_version(double* result);

int main() {
  double first = 0;
  double second = 0;
  const char* first_name = this_version(&first);
  const char* second_name = other_version(&second);
  std::printf("%s\n%s\n", first_name, second_name);
  return std::strcmp(first_name, second_name) != 0 && second == first + 1 ? 0 : 1;
}
