# SPDX-License-Identifier: MIT
#
# cmake -P cmake/check_layers.cmake [include directory]
#
# Reads the includes of every public header and fails where one looks to the right of its own layer, where a library
# that only one header may know is included elsewhere, or where ruvector.hpp does not list everything.

cmake_minimum_required(VERSION 3.24)

set(layers core simd geometry nn graph attention gnn train search)
set(only_in_xsimd simd/arch.hpp)
set(only_in_Eigen core/eigen.hpp graph/spectral_positions.hpp)
set(only_in_nlohmann io/json.hpp)

cmake_path(SET include_dir NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../include")
if(CMAKE_ARGC GREATER 3)
  set(include_dir "${CMAKE_ARGV3}")
endif()

# Sets ${rank} to how far to the right a folder stands. io sees everything up to train, and nobody sees io.
function(rank_of folder rank)
  list(FIND layers "${folder}" index)
  if(folder STREQUAL "io")
    list(FIND layers train index)
    math(EXPR index "${index} + 1")
  elseif(index EQUAL -1)
    message(FATAL_ERROR "check_layers: the folder ${folder} has no place in the order of layers")
  endif()
  set(${rank} ${index} PARENT_SCOPE)
endfunction()

set(errors)
set(all)
file(GLOB_RECURSE headers RELATIVE "${include_dir}/ruvector" "${include_dir}/ruvector/*.hpp")
foreach(header IN LISTS headers)
  cmake_path(GET header PARENT_PATH folder)
  file(STRINGS "${include_dir}/ruvector/${header}" lines REGEX "^ *# *include")
  if(folder STREQUAL "")
    continue() # version.hpp and ruvector.hpp
  endif()
  list(APPEND all "${header}")
  rank_of(${folder} rank)
  foreach(line IN LISTS lines)
    foreach(library IN ITEMS xsimd Eigen nlohmann)
      if(line MATCHES "[<\"](unsupported/)?${library}/" AND NOT header IN_LIST only_in_${library})
        list(APPEND errors "${header} includes ${library}, which only [${only_in_${library}}] may")
      endif()
    endforeach()
    if(line MATCHES "[<\"]ruvector/(.+)/[^/]+[>\"]")
      set(other "${CMAKE_MATCH_1}")
      rank_of(${other} other_rank)
      if(other_rank GREATER rank OR (NOT folder STREQUAL other AND (other_rank EQUAL rank OR other STREQUAL "io")))
        list(APPEND errors "${header} includes ${other}/, which is not to the left of ${folder}/")
      endif()
    elseif(line MATCHES "\"" AND NOT line MATCHES "\"ruvector/version.hpp\"")
      list(APPEND errors "${header}: ${line}: use the full path below ruvector/, and not ruvector.hpp")
    endif()
  endforeach()
endforeach()

# The umbrella is everything but io, which is asked for by those who read and write files.
file(STRINGS "${include_dir}/ruvector/ruvector.hpp" lines REGEX "^#include")
string(REGEX REPLACE "#include \"ruvector/([^;]*)\"" "\\1" listed "${lines}")
list(REMOVE_ITEM listed version.hpp)
list(FILTER all EXCLUDE REGEX "^io/")
foreach(header IN LISTS all)
  if(NOT header IN_LIST listed)
    list(APPEND errors "ruvector.hpp does not include ${header}")
  endif()
endforeach()

if(errors)
  list(JOIN errors "\n  " errors)
  message(FATAL_ERROR "check_layers:\n  ${errors}")
endif()
list(LENGTH headers count)
if(count LESS 10)
  message(FATAL_ERROR "check_layers: only ${count} headers in ${include_dir}")
endif()
message(STATUS "check_layers: ${count} headers in order")
