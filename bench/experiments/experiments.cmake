# SPDX-License-Identifier: MIT
#
# The target `experiments` runs what is missing in results/ and writes report.md: hours. `experiments-quick` runs small
# versions of the experiments, the tests labelled `experiments`, which fail where a figure leaves its interval: minutes.
# Included where those tests are made.

set(programs adaptive_search ann_benchmarks attention_memory continual dictionary_lookup graph_positions
    hierarchical_retrieval supersense wordnet_search)
foreach(name IN LISTS programs)
  if(NOT TARGET ${name})
    list(REMOVE_ITEM programs ${name})
  endif()
endforeach()
add_custom_target(experiments_programs DEPENDS ${programs})

find_package(Python3 QUIET COMPONENTS Interpreter)
if(Python3_Interpreter_FOUND)
  add_custom_target(
    experiments
    COMMAND Python3::Interpreter "${CMAKE_CURRENT_LIST_DIR}/run.py" --programs "${PROJECT_BINARY_DIR}"
    USES_TERMINAL VERBATIM)
  add_dependencies(experiments experiments_programs)
endif()

if(RUVECTOR_BUILD_TESTS)
  get_property(tests DIRECTORY PROPERTY TESTS)
  list(JOIN programs "|" names)
  list(FILTER tests INCLUDE REGEX "^examples/(${names})(/|$)")
  set_property(TEST ${tests} APPEND PROPERTY LABELS experiments)
  add_custom_target(
    experiments-quick
    COMMAND "${CMAKE_CTEST_COMMAND}" -L "^experiments$" --output-on-failure --no-tests=error
    WORKING_DIRECTORY "${PROJECT_BINARY_DIR}"
    USES_TERMINAL VERBATIM)
  add_dependencies(experiments-quick experiments_programs)
endif()
