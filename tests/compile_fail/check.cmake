# SPDX-License-Identifier: MIT
#
# cmake -D COMPILER=<c++> -D FILE=<source> -D INCLUDES=<options> -P check.cmake
#
# Compiles a file that is wrong on purpose. Its comments say what has to come of it:
#   // expect: <regex>        what the compiler's output has to contain (every such line)
#   // flags: <options>       more options
# The output has at most 15 lines, and the file without the wrong line (RUVECTOR_CONTROL) compiles.

cmake_minimum_required(VERSION 3.24)

file(STRINGS "${FILE}" expectations REGEX "^// expect: ")
file(STRINGS "${FILE}" flags REGEX "^// flags: ")
string(REGEX REPLACE "^// flags: " "" flags "${flags}")
separate_arguments(flags UNIX_COMMAND "${flags}")
set(command "${COMPILER}" -std=c++20 -fsyntax-only ${INCLUDES})

execute_process(COMMAND ${command} -D RUVECTOR_CONTROL "${FILE}" RESULT_VARIABLE code ERROR_VARIABLE output)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "the control, with nothing wrong in it, does not compile:\n${output}")
endif()

execute_process(COMMAND ${command} ${flags} "${FILE}" RESULT_VARIABLE code ERROR_VARIABLE output)
if(code EQUAL 0)
  message(FATAL_ERROR "compiles, and must not")
endif()
message("${output}")
if(NOT expectations)
  message(FATAL_ERROR "the file says nothing about what to expect")
endif()
foreach(expectation IN LISTS expectations)
  string(REGEX REPLACE "^// expect: " "" expectation "${expectation}")
  if(NOT output MATCHES "${expectation}")
    message(FATAL_ERROR "the output does not contain: ${expectation}")
  endif()
endforeach()
string(REGEX MATCHALL "\n" newlines "${output}")
list(LENGTH newlines lines)
if(lines GREATER 15)
  message(FATAL_ERROR "the output has ${lines} lines, 15 are allowed")
endif()
