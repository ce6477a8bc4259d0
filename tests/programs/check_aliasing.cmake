# SPDX-License-Identifier: MIT
#
# cmake -D COMPILER=<c++> -D INCLUDES=<options> -D WORK=<dir> -P check_aliasing.cmake
#
# The library never reads an object through a pointer to another type: no warning about it, and at -O3 the same bits
# with and without the compiler's trust in that.

cmake_minimum_required(VERSION 3.24)

cmake_path(SET source NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../mixed_target")
file(MAKE_DIRECTORY "${WORK}")
foreach(aliasing IN ITEMS strict-aliasing no-strict-aliasing)
  execute_process(
    COMMAND "${COMPILER}" -std=c++20 -O3 -march=native -f${aliasing} -Wstrict-aliasing=1 -Werror ${INCLUDES} -DRUVECTOR_ENTRY=entry
            "-DRUVECTOR_ENTRIES=X(entry, \"sse2\")" "${source}/kernel.cpp" "${source}/main.cpp" -pthread -o "${WORK}/${aliasing}"
    COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND "${WORK}/${aliasing}" OUTPUT_VARIABLE results_${aliasing} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
string(LENGTH "${results_strict-aliasing}" length)
if(length LESS 1000 OR NOT results_strict-aliasing STREQUAL results_no-strict-aliasing)
  message(FATAL_ERROR "-fno-strict-aliasing changes the results")
endif()
