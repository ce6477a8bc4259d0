# SPDX-License-Identifier: MIT
#
# cmake -D "PROGRAMS=<list>" -D WORK=<dir> -P isa_attention.cmake
#
# One program built for several targets, the most modest first: those that this CPU can run agree.

cmake_minimum_required(VERSION 3.24)

file(MAKE_DIRECTORY "${WORK}")
list(GET PROGRAMS 0 modest)
execute_process(COMMAND "${modest}" targets OUTPUT_VARIABLE targets OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(results)
foreach(program IN LISTS PROGRAMS)
  string(REGEX MATCH "isa_attention_([a-z0-9]+)" name "${program}")
  if(CMAKE_MATCH_1 IN_LIST targets)
    execute_process(COMMAND "${program}" OUTPUT_FILE "${WORK}/${CMAKE_MATCH_1}.txt" COMMAND_ERROR_IS_FATAL ANY)
    list(APPEND results "${WORK}/${CMAKE_MATCH_1}.txt")
  else()
    message("note: this CPU cannot run ${CMAKE_MATCH_1}, which was left out")
  endif()
endforeach()
execute_process(COMMAND "${modest}" compare ${results} COMMAND_ERROR_IS_FATAL ANY)
