# SPDX-License-Identifier: MIT
#
# ruvector_dev: the flags of our own tests, benchmarks and examples. Consumers never see them.

if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release)
  endif()
  # xsimd 8.1 does not compile for AVX-512 at -O0 with gcc.
  set(CMAKE_CXX_FLAGS_DEBUG "-Og -g")
  if(NOT DEFINED CMAKE_COMPILE_WARNING_AS_ERROR)
    set(CMAKE_COMPILE_WARNING_AS_ERROR ON)
  endif()
  set(CMAKE_CXX_EXTENSIONS OFF)
endif()

add_library(ruvector_dev INTERFACE)
target_link_libraries(ruvector_dev INTERFACE ruvector::ruvector ruvector::io)
target_compile_options(
  ruvector_dev
  INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wdouble-promotion
            # False alarms inside gcc 12's own AVX-512 intrinsics (GCC bug 105593); clang keeps looking.
            "$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>"
            $<$<BOOL:${RUVECTOR_NATIVE}>:-march=native>
            # gcc's default; clang would not fuse the products and sums of xsimd 8.1, which has no AVX-512 fma.
            $<$<CXX_COMPILER_ID:Clang,AppleClang>:-ffp-contract=fast>)

# Sets ${libraries} to what ${file} needs beside ruvector_dev: zlib, where it reads Fashion-MNIST. Sets ${missing} where
# that is not installed, and says so: the file is left out then.
function(ruvector_extra_libraries file libraries missing)
  set(${libraries} "" PARENT_SCOPE)
  set(${missing} FALSE PARENT_SCOPE)
  file(STRINGS ${file} includes REGEX "#include \".*fashion_mnist.hpp\"")
  if(includes)
    find_package(ZLIB QUIET)
    if(TARGET ZLIB::ZLIB)
      set(${libraries} ZLIB::ZLIB PARENT_SCOPE)
    else()
      message(STATUS "ruvector: ${file} is left out, since zlib was not found (Debian and Ubuntu: apt install zlib1g-dev)")
      set(${missing} TRUE PARENT_SCOPE)
    endif()
  endif()
endfunction()
