# SPDX-License-Identifier: MIT
#
# Installs what is missing with the system's package manager. Runs only where it was asked for
# (RUVECTOR_INSTALL_DEPS=ON: the presets demo and test), before project(), and asks before it changes anything: a second
# configure costs one query. What it may not or cannot install is a warning with the exact command; Dependencies.cmake
# then downloads the headers, or says what is missing.

# Sets ${packages} to what this build needs, in the names of one package manager.
function(ruvector_needed_packages packages compiler make headers tests examples benchmarks)
  set(needed ${headers})
  find_program(RUVECTOR_CXX NAMES $ENV{CXX} ${CMAKE_CXX_COMPILER} c++ g++ clang++ NO_CACHE)
  if(NOT RUVECTOR_CXX)
    list(APPEND needed ${compiler})
  endif()
  find_program(RUVECTOR_MAKE NAMES make gmake NO_CACHE)
  if(NOT RUVECTOR_MAKE AND CMAKE_GENERATOR MATCHES "Makefiles")
    list(APPEND needed ${make})
  endif()
  if(NOT DEFINED RUVECTOR_BUILD_TESTS OR RUVECTOR_BUILD_TESTS)
    list(APPEND needed ${tests})
  endif()
  if(NOT DEFINED RUVECTOR_BUILD_EXAMPLES OR RUVECTOR_BUILD_EXAMPLES)
    list(APPEND needed ${examples})
  endif()
  if(RUVECTOR_BUILD_BENCHMARKS)
    list(APPEND needed ${benchmarks})
  endif()
  set(${packages} ${needed} PARENT_SCOPE)
endfunction()

# Sets ${missing} to those packages for which the command "query... <package>" fails or does not print ${pattern}.
function(ruvector_missing_packages missing packages pattern)
  set(result)
  foreach(package IN LISTS packages)
    execute_process(COMMAND ${ARGN} ${package} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_QUIET)
    if(NOT code EQUAL 0 OR NOT output MATCHES "${pattern}")
      list(APPEND result ${package})
    endif()
  endforeach()
  set(${missing} ${result} PARENT_SCOPE)
endfunction()

# Runs "install... <packages>", and where that fails one package at a time: apt installs nothing at all if it does not
# know one of the names. Sets ${failed} to what could not be installed.
function(ruvector_install_packages failed packages)
  set(result)
  execute_process(COMMAND ${ARGN} ${packages} RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    foreach(package IN LISTS packages)
      execute_process(COMMAND ${ARGN} ${package} RESULT_VARIABLE code)
      if(NOT code EQUAL 0)
        list(APPEND result ${package})
      endif()
    endforeach()
  endif()
  set(${failed} ${result} PARENT_SCOPE)
endfunction()

# Sets ${prefix} to what has to stand before a command that needs root: nothing for root itself, else sudo without a
# password prompt.
function(ruvector_root_prefix prefix)
  execute_process(COMMAND id -u OUTPUT_VARIABLE user OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(user EQUAL 0)
    set(${prefix} env PARENT_SCOPE)
  else()
    set(${prefix} sudo -n env PARENT_SCOPE)
  endif()
endfunction()

function(ruvector_install_system_packages)
  find_program(RUVECTOR_APT apt-get NO_CACHE)
  find_program(RUVECTOR_DNF dnf NO_CACHE)
  find_program(RUVECTOR_BREW brew NO_CACHE)
  if(RUVECTOR_APT)
    ruvector_needed_packages(packages g++ make "libeigen3-dev;libxsimd-dev;nlohmann-json3-dev" "catch2;libhnswlib-dev" "libcli11-dev;wordnet-base;dataset-fashion-mnist;zlib1g-dev"
                             "libbenchmark-dev;libcli11-dev;libhnswlib-dev;libfaiss-dev;liblapack-dev;dataset-fashion-mnist;zlib1g-dev")
    ruvector_missing_packages(missing "${packages}" "install ok installed" dpkg-query -W -f "\${Status}")
    set(by_hand "sudo apt-get install")
  elseif(RUVECTOR_DNF)
    ruvector_needed_packages(packages gcc-c++ make "eigen3-devel;xsimd-devel;json-devel" "catch-devel;hnswlib-devel" "cli11-devel;wordnet;zlib-devel"
                             "google-benchmark-devel;cli11-devel;hnswlib-devel;faiss-devel;lapack-devel;zlib-devel")
    ruvector_missing_packages(missing "${packages}" "" rpm -q)
    set(by_hand "sudo dnf install")
  elseif(RUVECTOR_BREW)
    ruvector_needed_packages(packages llvm make "eigen;xsimd;nlohmann-json" "catch2;hnswlib" "cli11;wordnet" "google-benchmark;cli11;hnswlib;faiss")
    ruvector_missing_packages(missing "${packages}" "" "${RUVECTOR_BREW}" list --versions)
    set(by_hand "brew install")
  else()
    message(STATUS "ruvector: no apt, dnf or brew here, so no system packages are installed")
    return()
  endif()
  if(NOT missing)
    return()
  endif()

  list(JOIN missing " " names)
  message(STATUS "ruvector: installing ${names}")
  ruvector_root_prefix(root)
  if(RUVECTOR_APT)
    execute_process(COMMAND ${root} "${RUVECTOR_APT}" update -q)
    ruvector_install_packages(failed "${missing}" ${root} DEBIAN_FRONTEND=noninteractive "${RUVECTOR_APT}" install -q -y
                              --no-install-recommends)
  elseif(RUVECTOR_DNF)
    ruvector_install_packages(failed "${missing}" ${root} "${RUVECTOR_DNF}" install -y)
  else()
    ruvector_install_packages(failed "${missing}" "${RUVECTOR_BREW}" install)
  endif()
  if(failed)
    list(JOIN failed " " names)
    message(WARNING "ruvector: could not install some packages. Please run\n  ${by_hand} ${names}")
  endif()
endfunction()

ruvector_install_system_packages()
