// SPDX-License-Identifier: MIT
#pragma once

// CMake parses these three lines: they are the only place where the version is written.
#define RUVECTOR_VERSION_MAJOR 0
#define RUVECTOR_VERSION_MINOR 1
#define RUVECTOR_VERSION_PATCH 0
