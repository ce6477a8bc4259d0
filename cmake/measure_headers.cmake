# SPDX-License-Identifier: MIT
#
# cmake -D COMPILER=<c++> -D INCLUDES=<options> -D WORK=<dir> -P measure_headers.cmake
#
# Prints how long a file takes to compile that includes one public header and nothing else, slowest first. Of those whose
# path matches the regular expression in the environment variable RUVECTOR_HEADERS, if that is set.

cmake_minimum_required(VERSION 3.24)

cmake_path(SET include_dir NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../include")
file(GLOB_RECURSE headers RELATIVE "${include_dir}" "${include_dir}/*.hpp")
if(DEFINED ENV{RUVECTOR_HEADERS})
  list(FILTER headers INCLUDE REGEX "$ENV{RUVECTOR_HEADERS}")
endif()
file(MAKE_DIRECTORY "${WORK}")
set(rows)
foreach(header IN LISTS headers)
  file(WRITE "${WORK}/cost.cpp" "#include <${header}>\n")
  string(TIMESTAMP start "%s%f")
  execute_process(COMMAND "${COMPILER}" -std=c++20 -O2 ${INCLUDES} -c "${WORK}/cost.cpp" -o "${WORK}/cost.o"
                  COMMAND_ERROR_IS_FATAL ANY)
  string(TIMESTAMP end "%s%f")
  math(EXPR milliseconds "(${end} - ${start}) / 1000")
  string(LENGTH "${milliseconds}" length)
  math(EXPR padding "6 - ${length}")
  string(REPEAT " " ${padding} padding)
  list(APPEND rows "${padding}${milliseconds} ms  ${header}")
endforeach()
list(SORT rows ORDER DESCENDING)
list(JOIN rows "\n" rows)
message("${rows}")
