# SPDX-License-Identifier: MIT
#
# cmake -D OBJDUMP= -D "PROGRAMS=<list>" -P check_symbols.cmake
#
# Nothing in the library may remember: its code, as linked into the tests, has no variable that can be written.

cmake_minimum_required(VERSION 3.24)

set(checked 0)
foreach(program IN LISTS PROGRAMS)
  execute_process(COMMAND "${OBJDUMP}" -t "${program}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  # Mangled names in the library's namespace end in its ABI tag: ...8ruvector38v0_1_0_...
  string(REGEX MATCHALL "[^\n]*8ruvector[0-9]+v[0-9]+_[^\n]*" symbols "${symbols}")
  list(LENGTH symbols count)
  math(EXPR checked "${checked} + ${count}")
  # .data.rel.ro is read only once the program runs: tables of virtual functions. DW.ref.* are the compiler's pointers
  # to the types of exceptions.
  list(FILTER symbols INCLUDE REGEX "[ \t]\\.(t?bss|t?data)(\\.|[ \t])")
  list(FILTER symbols EXCLUDE REGEX "[ \t]\\.data\\.rel\\.ro|DW\\.ref\\.")
  if(symbols)
    list(JOIN symbols "\n  " symbols)
    message(FATAL_ERROR "${program}: variables of the library that can be written\n  ${symbols}")
  endif()
endforeach()
if(checked EQUAL 0)
  message(FATAL_ERROR "no symbols of the library were found")
endif()
message("${checked} symbols, none of a variable that can be written")
