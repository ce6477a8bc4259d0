# SPDX-License-Identifier: MIT
#
# The target `docs`: the reference of every public name as HTML. It fails where a public name has no description.

find_package(Doxygen QUIET)
if(NOT Doxygen_FOUND)
  return()
endif()

set(DOXYGEN_PROJECT_BRIEF "${PROJECT_DESCRIPTION}")
set(DOXYGEN_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/docs")
set(DOXYGEN_STRIP_FROM_PATH "${PROJECT_SOURCE_DIR}/include")
set(DOXYGEN_FULL_PATH_NAMES YES)
# The inline namespace of the ABI tag is nobody's business but the linker's.
set(DOXYGEN_INPUT_FILTER "sed -e 's/::inline RUVECTOR_ABI//'")
set(DOXYGEN_MACRO_EXPANSION YES)
set(DOXYGEN_EXCLUDE_SYMBOLS "*::detail;detail::*;std;Eigen;xsimd")
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
# One description may stand for a group: /// Rows and columns.  ///@{ ... ///@}
set(DOXYGEN_DISTRIBUTE_GROUP_DOC YES)
set(DOXYGEN_MARKDOWN_SUPPORT YES)
set(DOXYGEN_EXTRACT_ALL NO)
set(DOXYGEN_EXTRACT_STATIC YES)
set(DOXYGEN_HIDE_UNDOC_MEMBERS NO)
set(DOXYGEN_GENERATE_LATEX NO)
set(DOXYGEN_QUIET YES)
set(DOXYGEN_WARN_IF_UNDOCUMENTED YES)
set(DOXYGEN_WARN_NO_PARAMDOC NO)
set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)

doxygen_add_docs(docs include/ruvector COMMENT "Writing the reference to ${DOXYGEN_OUTPUT_DIRECTORY}/html/index.html")
