// SPDX-License-Identifier: MIT
#pragma once

#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench {

/// Another program that runs the same work when it is told to, so that both can be measured in turns. It reads a line
/// from its standard input, does what the line says once, and writes a line when it is done.
class Peer {
 public:
  /// Starts a program by its path (or its name, searched in PATH) with arguments.
  explicit Peer(std::vector<std::string> command) {
    int to[2], from[2];
    if (::pipe(to) != 0 || ::pipe(from) != 0) throw std::runtime_error("Peer: no pipe");
    ::signal(SIGPIPE, SIG_IGN);  // a program that has ended is an error of ask(), not the end of this one
    process_ = ::fork();
    if (process_ < 0) throw std::runtime_error("Peer: no process");
    if (process_ == 0) {
      ::dup2(to[0], 0);
      ::dup2(from[1], 1);
      for (const int end : {to[0], to[1], from[0], from[1]}) ::close(end);
      std::vector<char*> arguments;
      for (std::string& argument : command) arguments.push_back(argument.data());
      arguments.push_back(nullptr);
      ::execvp(arguments[0], arguments.data());
      std::perror(arguments[0]);
      ::_exit(127);
    }
    ::close(to[0]);
    ::close(from[1]);
    in_ = ::fdopen(to[1], "w");
    out_ = ::fdopen(from[0], "r");
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  /// Ends the program by the end of its input.
  ~Peer() {
    std::fclose(in_);
    std::fclose(out_);
    ::waitpid(process_, nullptr, 0);
  }

  /// Sends a line and waits for the answer. Throws std::runtime_error if there is none.
  std::string ask(const std::string& line) {
    char answer[256];
    if (std::fprintf(in_, "%s\n", line.c_str()) < 0 || std::fflush(in_) != 0 ||
        std::fgets(answer, sizeof answer, out_) == nullptr)
      throw std::runtime_error("Peer: no answer to " + line);
    std::string text = answer;
    text.resize(text.find_last_not_of("\r\n") + 1);
    return text;
  }

 private:
  pid_t process_ = 0;
  std::FILE* in_ = nullptr;
  std::FILE* out_ = nullptr;
};

}  // namespace bench
