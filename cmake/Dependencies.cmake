# SPDX-License-Identifier: MIT
#
# Each dependency is, in this order: a target that exists already, an installed package, a pinned download.
#
# find_package is called without a version: packages of these projects accept only their own major version, so that
# "3.4" rejects Eigen 5 and a range rejects Eigen 3.4. Their versions are compared here instead.

include(FetchContent)

# Sets ${found} to whether ${target} exists or an installed ${package} of at least ${minimum} provides it.
function(ruvector_find package target minimum found)
  if(NOT TARGET ${target})
    find_package(${package} CONFIG QUIET GLOBAL)
    if(${package}_FOUND AND ${package}_VERSION VERSION_LESS minimum)
      message(FATAL_ERROR "ruvector: ${package} ${${package}_VERSION} in ${${package}_DIR} is too old, ${minimum} is needed. "
                          "Set ${package}_ROOT to a newer one, or -D CMAKE_DISABLE_FIND_PACKAGE_${package}=ON to download it.")
    endif()
    if(TARGET ${target})
      message(STATUS "ruvector: ${package} ${${package}_VERSION} (${${package}_DIR})")
    elseif(NOT RUVECTOR_FETCH_DEPS)
      message(FATAL_ERROR "ruvector: ${package} was not found. Install it, or set -D RUVECTOR_FETCH_DEPS=ON to download it.")
    else()
      message(STATUS "ruvector: ${package} is not installed, downloading it")
    endif()
  endif()
  if(TARGET ${target})
    set(${found} TRUE PARENT_SCOPE)
  else()
    set(${found} FALSE PARENT_SCOPE)
  endif()
endfunction()

# Downloads a header-only project without running its CMake files: its own install rules would put its headers into our
# prefix. The target is IMPORTED since install(EXPORT) refuses to refer to any other target that it does not export.
function(ruvector_fetch_headers name target repository commit include_dir)
  FetchContent_Declare(${name} GIT_REPOSITORY ${repository} GIT_TAG ${commit} SOURCE_SUBDIR no-cmake)
  FetchContent_MakeAvailable(${name})
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} INTERFACE "${${name}_SOURCE_DIR}/${include_dir}")
endfunction()

# What the public headers need: xsimd, Eigen and threads.
function(ruvector_require_library_dependencies)
  ruvector_find(xsimd xsimd 8.1 found)
  if(found)
    # Debian's xsimd 8.1 links xtl, which it never looks for and does not need.
    get_target_property(libraries xsimd INTERFACE_LINK_LIBRARIES)
    if(libraries AND NOT TARGET xtl)
      list(REMOVE_ITEM libraries xtl)
      set_property(TARGET xsimd PROPERTY INTERFACE_LINK_LIBRARIES ${libraries})
    endif()
  else()
    ruvector_fetch_headers(xsimd xsimd https://github.com/xtensor-stack/xsimd.git
                           e88a72831858123924f7118f345dfe5d70d95991 include) # 14.3.0
  endif()

  ruvector_find(Eigen3 Eigen3::Eigen 3.4 found)
  if(NOT found)
    ruvector_fetch_headers(eigen Eigen3::Eigen https://gitlab.com/libeigen/eigen.git
                           3147391d946bb4b6c68edd901f2add6ac1f31f8c .) # 3.4.0
  endif()

  if(NOT TARGET Threads::Threads)
    set(THREADS_PREFER_PTHREAD_FLAG ON)
    find_package(Threads REQUIRED GLOBAL)
  endif()
endfunction()

# The component io: nlohmann_json.
function(ruvector_require_nlohmann_json)
  ruvector_find(nlohmann_json nlohmann_json::nlohmann_json 3.10 found)
  if(NOT found)
    ruvector_fetch_headers(nlohmann_json nlohmann_json::nlohmann_json https://github.com/nlohmann/json.git
                           9cca280a4d0ccf0c08f47a99aa71d1b0e52f8d03 include) # 3.11.3
  endif()
endfunction()

# Tests: Catch2, version 2 or 3.
function(ruvector_require_catch2)
  ruvector_find(Catch2 Catch2::Catch2WithMain 2.13 found)
  if(NOT found)
    ruvector_third_party_settings()
    FetchContent_Declare(catch2 GIT_REPOSITORY https://github.com/catchorg/Catch2.git
                         GIT_TAG fa43b77429ba76c462b1898d6cd2f2d7a9416b14) # 3.7.1
    FetchContent_MakeAvailable(catch2)
    set(Catch2_VERSION 3.7.1)
  endif()
  set(Catch2_VERSION ${Catch2_VERSION} PARENT_SCOPE)
endfunction()

# Benchmarks: Google Benchmark.
function(ruvector_require_benchmark)
  ruvector_find(benchmark benchmark::benchmark_main 1.7 found)
  if(NOT found)
    ruvector_third_party_settings()
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_GTEST_TESTS OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    FetchContent_Declare(benchmark GIT_REPOSITORY https://github.com/google/benchmark.git
                         GIT_TAG 192ef10025eb2c4cdd392bc502f0c852196baa48) # 1.9.5
    FetchContent_MakeAvailable(benchmark)
  endif()
endfunction()

# Examples: CLI11.
function(ruvector_require_cli11)
  ruvector_find(CLI11 CLI11::CLI11 2.1 found)
  if(NOT found)
    ruvector_fetch_headers(cli11 CLI11::CLI11 https://github.com/CLIUtils/CLI11.git
                           4160d259d961cd393fd8d67590a8c7d210207348 include) # 2.5.0
  endif()
endfunction()

# Our own settings are not for the sources of others.
macro(ruvector_third_party_settings)
  set(CMAKE_COMPILE_WARNING_AS_ERROR OFF)
  set(CMAKE_UNITY_BUILD OFF)
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
endmacro()
