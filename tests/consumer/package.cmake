# SPDX-License-Identifier: MIT
#
# cmake -D CPACK= -D DPKG_DEB= -D BUILD=<build directory> -D WORK=<dir> -P package.cmake
#
# Makes the Debian package and unpacks it, without installing it, to WORK/unpacked.

cmake_minimum_required(VERSION 3.24)

file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")
execute_process(COMMAND "${CPACK}" --config "${BUILD}/CPackConfig.cmake" -G DEB -B "${WORK}" COMMAND_ERROR_IS_FATAL ANY)
file(GLOB package "${WORK}/*_all.deb")
execute_process(COMMAND "${DPKG_DEB}" --info "${package}" COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${DPKG_DEB}" -x "${package}" "${WORK}/unpacked" COMMAND_ERROR_IS_FATAL ANY)
if(NOT EXISTS "${WORK}/unpacked/usr/include/ruvector/version.hpp")
  message(FATAL_ERROR "the package has no headers in usr/include")
endif()
