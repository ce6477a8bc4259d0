// SPDX-License-Identifier: MIT

// Calls the kernels that this machine's CPU can run and prints the bits of their results. RUVECTOR_ENTRIES lists them:
// X(name, CPU feature). Knows nothing of the library, as the part of a program that picks a target at run time.
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define X(name, feature) extern "C" int name(double* results, int capacity);
RUVECTOR_ENTRIES
#undef X

namespace {

void print(const char* name, int (*kernel)(double*, int)) {
  static double results[1 << 16];
  const int count = kernel(results, 1 << 16);
  if (count > 1 << 16) std::printf("%s: too many results\n", name);
  for (int i = 0; i < count; ++i) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &results[i], sizeof bits);
    std::printf("%s %d %016" PRIx64 "\n", name, i, bits);
  }
}

}  // namespace

int main() {
#define X(name, feature) \
  if (__builtin_cpu_supports(feature)) print(#name, name);
  RUVECTOR_ENTRIES
#undef X
}
