# SPDX-License-Identifier: MIT
#
# cmake -D COMPILER=<c++> -D INCLUDE=<dir> -D WORK=<dir> -P check_abi_tag.cmake
#
# The ABI tag differs between any two build flavours, and is the same for the same one.

cmake_minimum_required(VERSION 3.24)

set(flavours
    "" -DNDEBUG -fno-exceptions -DRUVECTOR_SCALAR "-DNDEBUG -fno-exceptions"
    -DRUVECTOR_VERSION_MAJOR=8 -DRUVECTOR_VERSION_MINOR=8 -DRUVECTOR_VERSION_PATCH=8)
execute_process(COMMAND "${COMPILER}" -dumpmachine OUTPUT_VARIABLE machine)
if(machine MATCHES "^x86_64")
  list(APPEND flavours
       -msse3 -mssse3 -msse4.1 -msse4.2 -mpopcnt -mlzcnt -mbmi -mbmi2 -mavx -mf16c -mfma -mfma4 -mxop -mavx2 -mavxvnni
       -mmovbe -mavx512f -mavx512cd -mavx512bw -mavx512dq -mavx512vl -mavx512ifma -mavx512vbmi -mavx512vbmi2
       -mavx512vnni -mavx512bitalg -mavx512vpopcntdq -mavx512bf16 -mavx512fp16 -mavx512vp2intersect -mgfni
       "-mavx2 -mfma" -march=x86-64-v3 -march=x86-64-v4 "-march=x86-64-v4 -DNDEBUG")
endif()

file(MAKE_DIRECTORY "${WORK}")
file(WRITE "${WORK}/tag.cpp" "#include \"ruvector/core/abi.hpp\"\n@tag RUVECTOR_ABI\n")
# version.hpp with values from the command line
file(READ "${INCLUDE}/ruvector/version.hpp" version)
string(REGEX REPLACE "#define (RUVECTOR_VERSION_[A-Z]+) ([0-9]+)" "#ifndef \\1\n#define \\1 \\2\n#endif" version "${version}")
file(WRITE "${WORK}/ruvector/version.hpp" "${version}")

function(tag_of flavour tag)
  separate_arguments(flags UNIX_COMMAND "${flavour}")
  execute_process(COMMAND "${COMPILER}" -std=c++20 -E -P ${flags} "-I${WORK}" "-I${INCLUDE}" "${WORK}/tag.cpp"
                  OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  if(NOT output MATCHES "@tag ([a-zA-Z0-9_]+)\n")
    message(FATAL_ERROR "flavour '${flavour}': no tag in ${output}")
  endif()
  set(${tag} ${CMAKE_MATCH_1} PARENT_SCOPE)
endfunction()

set(seen)
foreach(flavour IN LISTS flavours)
  tag_of("${flavour}" tag)
  tag_of("${flavour}" again)
  message("${tag}  ${flavour}")
  if(NOT tag STREQUAL again)
    message(FATAL_ERROR "'${flavour}' has two tags")
  endif()
  if(tag IN_LIST seen)
    message(FATAL_ERROR "the tag of '${flavour}' is that of another flavour")
  endif()
  list(APPEND seen ${tag})
endforeach()
