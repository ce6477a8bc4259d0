# SPDX-License-Identifier: MIT
#
# cmake -D SOURCE=<dir> -P check_readme.cmake: every C++ snippet of the README stands, line by line, in a program that is
# compiled and run.

file(READ "${SOURCE}/README.md" readme)
file(GLOB programs "${SOURCE}/examples/*.cpp")
set(code "")
foreach(program IN LISTS programs)
  file(READ "${program}" text)
  string(APPEND code "${text}")
endforeach()

set(snippets 0)
string(FIND "${readme}" "```cpp\n" begin)
while(begin GREATER -1)
  math(EXPR begin "${begin} + 7")
  string(SUBSTRING "${readme}" ${begin} -1 readme)
  string(FIND "${readme}" "```" length)
  string(SUBSTRING "${readme}" 0 ${length} snippet)
  string(FIND "${code}" "${snippet}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "README.md: no example has this snippet:\n${snippet}")
  endif()
  math(EXPR snippets "${snippets} + 1")
  string(FIND "${readme}" "```cpp\n" begin)
endwhile()
if(snippets EQUAL 0)
  message(FATAL_ERROR "README.md: no C++ snippet found")
endif()
