# SPDX-License-Identifier: MIT
#
# cmake -D SOURCE=<consumer> -D BUILD=<dir> [-D REFUSED=<regex>] -P check.cmake -- <configure arguments>
#
# Configures, builds and runs a consumer from nothing, and looks at its compile command: no flag may come from the
# library. With REFUSED, configuring has to fail with a message that matches.

cmake_minimum_required(VERSION 3.24)

set(arguments)
foreach(i RANGE 1 ${CMAKE_ARGC})
  if(separator)
    list(APPEND arguments "${CMAKE_ARGV${i}}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(separator TRUE)
  endif()
endforeach()

file(REMOVE_RECURSE "${BUILD}")
execute_process(
  COMMAND "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${BUILD}" -D CMAKE_EXPORT_COMPILE_COMMANDS=ON ${arguments}
  RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(REFUSED)
  if(code EQUAL 0)
    message(FATAL_ERROR "was not refused")
  endif()
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  if(NOT output MATCHES "${REFUSED}")
    message(FATAL_ERROR "was refused without the words: ${REFUSED}")
  endif()
  return()
endif()
if(NOT code EQUAL 0)
  message(FATAL_ERROR "does not configure")
endif()

execute_process(COMMAND "${CMAKE_COMMAND}" --build "${BUILD}" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${BUILD}/consumer" OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
message("${output}")

file(READ "${BUILD}/compile_commands.json" commands)
string(JSON command GET "${commands}" 0 command)
message("${command}")
string(REGEX MATCHALL " -[a-zA-Z][^ ]*" flags "${command}")
list(FILTER flags EXCLUDE REGEX "^ -(I|isystem|std=(c|gnu)\\+\\+20$|o$|c$|pthread$)")
if(flags)
  message(FATAL_ERROR "flags of the library in the consumer's compile command: ${flags}")
endif()

# Installing a consumer installs the consumer and nothing of ours.
file(READ "${SOURCE}/CMakeLists.txt" text)
if(text MATCHES "install\\(")
  execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${BUILD}/prefix" COMMAND_ERROR_IS_FATAL ANY)
  file(GLOB_RECURSE installed RELATIVE "${BUILD}/prefix" "${BUILD}/prefix/*")
  if(NOT installed STREQUAL "bin/consumer" AND NOT arguments MATCHES "RUVECTOR_INSTALL=ON")
    message(FATAL_ERROR "installed with the consumer: ${installed}")
  endif()
endif()
