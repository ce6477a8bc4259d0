# SPDX-License-Identifier: MIT
#
# cmake -D COMPILER=<c++> -D SOURCE=<tests/consumer> -D PREFIX=<prefix> -P check_pkg_config.cmake
#
# The consumer without CMake: c++ main.cpp $(pkg-config --cflags --libs ruvector).

cmake_minimum_required(VERSION 3.24)

find_program(PKG_CONFIG NAMES pkg-config pkgconf)
if(NOT PKG_CONFIG)
  message("note: pkg-config is not installed, its check was left out")
  return()
endif()

set(ENV{PKG_CONFIG_PATH} "${PREFIX}/share/pkgconfig")
execute_process(COMMAND "${PKG_CONFIG}" --cflags --libs ruvector OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
message("${flags}")
separate_arguments(flags UNIX_COMMAND "${flags}")
execute_process(COMMAND "${COMPILER}" -std=c++20 "${SOURCE}/main.cpp" ${flags} -o "${PREFIX}/consumer" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${PREFIX}/consumer" COMMAND_ERROR_IS_FATAL ANY)

execute_process(COMMAND "${PKG_CONFIG}" --cflags ruvector-io OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE
                COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(flags UNIX_COMMAND "${flags}")
execute_process(COMMAND "${COMPILER}" -std=c++20 -fsyntax-only "${SOURCE}/io.cpp" ${flags} COMMAND_ERROR_IS_FATAL ANY)
