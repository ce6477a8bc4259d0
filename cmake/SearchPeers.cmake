# SPDX-License-Identifier: MIT
#
# ruvector_search_peers: what search is compared with in benchmarks and examples, as far as it is installed.

add_library(ruvector_search_peers INTERFACE)
find_path(RUVECTOR_HNSWLIB hnswlib/hnswlib.h)
if(RUVECTOR_HNSWLIB)
  target_compile_definitions(ruvector_search_peers INTERFACE RUVECTOR_BENCH_HNSWLIB)
endif()
find_library(RUVECTOR_FAISS faiss)
find_package(OpenMP QUIET COMPONENTS CXX)
find_package(LAPACK QUIET)
if(RUVECTOR_FAISS AND OpenMP_CXX_FOUND AND LAPACK_FOUND)
  target_compile_definitions(ruvector_search_peers INTERFACE RUVECTOR_BENCH_FAISS)
  target_link_libraries(ruvector_search_peers INTERFACE ${RUVECTOR_FAISS} LAPACK::LAPACK OpenMP::OpenMP_CXX)
endif()
