// SPDX-License-Identifier: MIT
#pragma once

// Everything but io/, which is for those who read and write files. Each header can be included alone, and compiles
// sooner so.
#include "ruvector/core/abi.hpp"
#include "ruvector/core/eigen.hpp"
#include "ruvector/core/error.hpp"
#include "ruvector/core/executor.hpp"
#include "ruvector/core/matrix.hpp"
#include "ruvector/core/parameters.hpp"
#include "ruvector/core/progress.hpp"
#include "ruvector/core/random.hpp"
#include "ruvector/core/real.hpp"
#include "ruvector/core/view.hpp"
#include "ruvector/core/workspace.hpp"
#include "ruvector/version.hpp"
