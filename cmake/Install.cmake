# SPDX-License-Identifier: MIT
#
# Install rules: headers, a relocatable CMake package, a pkg-config file, a Debian package. All are independent of the
# architecture, so everything lies below include/ and share/.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# Headers can be installed and packaged without building the tests first.
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)

set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/ruvector")

install(TARGETS ruvector EXPORT ruvectorTargets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT ruvectorTargets NAMESPACE ruvector:: DESTINATION "${package_dir}")
if(RUVECTOR_IO)
  # A set of its own, so that nlohmann_json is looked for only where the component is asked for.
  install(TARGETS ruvector_io EXPORT ruvectorIoTargets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT ruvectorIoTargets NAMESPACE ruvector:: DESTINATION "${package_dir}")
endif()

configure_package_config_file(cmake/ruvectorConfig.cmake.in "${PROJECT_BINARY_DIR}/ruvectorConfig.cmake"
                              INSTALL_DESTINATION "${package_dir}")
# Before 1.0 each minor version may change the interface.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/ruvectorConfigVersion.cmake" COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES "${PROJECT_BINARY_DIR}/ruvectorConfig.cmake" "${PROJECT_BINARY_DIR}/ruvectorConfigVersion.cmake"
        DESTINATION "${package_dir}")

cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig"
           OUTPUT_VARIABLE pkgconfig_includedir)
configure_file(cmake/ruvector.pc.in "${PROJECT_BINARY_DIR}/ruvector.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/ruvector.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
if(RUVECTOR_IO)
  configure_file(cmake/ruvector-io.pc.in "${PROJECT_BINARY_DIR}/ruvector-io.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/ruvector-io.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
endif()

# Packaging is the business of the outermost project.
if(PROJECT_IS_TOP_LEVEL)
  set(CPACK_GENERATOR DEB)
  set(CPACK_PACKAGE_NAME libruvector-dev)
  set(CPACK_PACKAGE_CONTACT "the ruvector authors <noreply@example.org>")
  set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
  set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
  set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
  set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
  set(CPACK_DEBIAN_PACKAGE_DEPENDS "libeigen3-dev (>= 3.4), libxsimd-dev (>= 8.1)")
  if(RUVECTOR_IO)
    string(APPEND CPACK_DEBIAN_PACKAGE_DEPENDS ", nlohmann-json3-dev (>= 3.10)")
  endif()
  set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
  include(CPack)
endif()
