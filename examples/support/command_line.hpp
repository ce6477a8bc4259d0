// SPDX-License-Identifier: MIT
#pragma once

#include "interrupt.hpp"

#include <CLI/CLI.hpp>
#include <ruvector/core/error.hpp>

#include <cstdio>
#include <exception>

namespace examples {

/// What `main` returns: reads the command line into the options of `app`, which has a name, then calls `body`, whose
/// result is the exit code. Errors are one line on stderr, behind the name: 2 for options that cannot be or do not go
/// together (CLI::ParseError, ConfigError), 1 for everything else that is thrown. 0 for --help. From then on
/// `interrupted` says whether Ctrl-C was pressed or the seconds of --budget, an option of every program, are over.
template <class F>
int run_program(CLI::App& app, int argc, char** argv, const F& body) {
  const auto failed = [&](const std::exception& error, int code) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), error.what());
    return code;
  };
  double budget = 0;
  app.add_option("--budget", budget, "stop after so many seconds, as Ctrl-C does (default: never)")
      ->check(CLI::Range(0.0, 1e8));
  try {
    app.parse(argc, argv);
    handle_interrupts(budget);
    return body();
  } catch (const CLI::ParseError& error) {
    return error.get_exit_code() == 0 ? app.exit(error) : failed(error, 2);
  } catch (const ruvector::ConfigError& error) {
    return failed(error, 2);
  } catch (const std::exception& error) {
    return failed(error, 1);
  }
}

}  // namespace examples
