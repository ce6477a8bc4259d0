// SPDX-License-Identifier: MIT
#include <ruvector/core/random.hpp>
#include <ruvector/io/checkpoint.hpp>
#include <ruvector/nn/linear.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"

#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/ptrace.h>
#include <sys/syscall.h>
#endif

// A process that saves a checkpoint dies: at a random time, and before and after each system call it makes. Then the
// path holds the old checkpoint or the new one, complete to the last bit (the checksum says so).
namespace ruvector_test_crash {
namespace {

using namespace ruvector;
using io_files::Directory;
using Model = nn::Linear<float>;

// 330 kB: more than one write.
Model filled(float value) {
  Rng rng(1);
  Model model({.input = 290, .output = 280}, rng);
  for_each_parameter([&](std::string_view, std::span<float> x) { std::fill(x.begin(), x.end(), value); }, model);
  return model;
}

// The value that the checkpoint is filled with. Throws if it is damaged or mixed.
float value_in(const std::string& path) {
  Model model = filled(0);
  io::load_checkpoint(path, model);
  const float value = model.bias[0];
  for_each_parameter(
      [&](std::string_view, std::span<float> x) {
        REQUIRE(std::all_of(x.begin(), x.end(), [&](float v) { return v == value; }));
      },
      model);
  return value;
}

TEST_CASE("crash: kill -9 at any time leaves a complete checkpoint", "[io][crash]") {
  const Directory directory(Directory::in_memory);
  const std::string path = directory / "x";
  const Model old = filled(1), fresh = filled(2);
  const std::uint64_t seed = 5;
  CAPTURE(seed);
  Rng rng(seed);
  // The delay follows what the last child was seen to do, so that on any machine, however busy, some are killed before
  // they have saved the second checkpoint and some after.
  double delay = 1000;  // nanoseconds
  int seen_old = 0, seen_fresh = 0;
  std::ptrdiff_t killed_within = 0;
  for (int trial = 0; trial < 200 || ((seen_old == 0 || seen_fresh == 0) && trial < 2000); ++trial) {
    io::save_checkpoint(path, old);
    const std::ptrdiff_t files = directory.files();
    int started[2];
    REQUIRE(::pipe(started) == 0);
    const ::pid_t child = ::fork();
    if (child == 0) {
      if (::write(started[1], "b", 1) != 1) ::_exit(1);
      io::save_checkpoint(path, fresh);
      while (true) ::pause();
    }
    char byte = 0;
    REQUIRE(::read(started[0], &byte, 1) == 1);
    std::this_thread::sleep_for(std::chrono::nanoseconds(std::int64_t(2 * delay * rng.uniform())));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    ::close(started[0]);
    ::close(started[1]);
    const float value = value_in(path);
    REQUIRE((value == 1 || value == 2));
    (value == 1 ? seen_old : seen_fresh) += 1;
    killed_within += directory.files() - files;
    delay *= value == 2 ? 0.8 : 1.25;
  }
  CAPTURE(seen_old, seen_fresh, killed_within);
  CHECK(seen_old > 0);
  CHECK(seen_fresh > 0);
  CHECK(killed_within > 0);  // some left their temporary behind: the killing did happen in the middle of things
}

#if defined(__linux__) && defined(PTRACE_GET_SYSCALL_INFO)

// A system call of the child, seen before it is made and after.
struct Call {
  bool done;
  std::int64_t number;  // of the call
  std::int64_t first;   // its first argument
  std::int64_t result;
};

// Runs `body` in a child, stopped before and after each system call, and kills it at the stop number `kill_at`. Returns
// the stops; empty if children cannot be traced here.
template <class Body>
std::vector<Call> traced(Body&& body, std::size_t kill_at) {
  std::vector<Call> calls;
  const ::pid_t child = ::fork();
  if (child == 0) {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(1);
    ::raise(SIGSTOP);
    body();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (!WIFSTOPPED(status)) return calls;
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  std::int64_t number = 0, first = 0;
  while (true) {
    ::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
    ::waitpid(child, &status, 0);
    if (!WIFSTOPPED(status)) break;
    if (WSTOPSIG(status) != (SIGTRAP | 0x80)) continue;
    ::__ptrace_syscall_info info = {};
    REQUIRE(::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) > 0);
    const bool done = info.op == PTRACE_SYSCALL_INFO_EXIT;
    if (!done) {
      number = std::int64_t(info.entry.nr);
      first = std::int64_t(info.entry.args[0]);
    }
    calls.push_back({done, number, first, done ? info.exit.rval : 0});
    if (calls.size() - 1 == kill_at) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
      REQUIRE(WIFSIGNALED(status));
      return calls;
    }
  }
  REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  return calls;
}

bool is_rename(std::int64_t number) {
#ifdef SYS_rename
  if (number == SYS_rename) return true;
#endif
  return number == SYS_renameat || number == SYS_renameat2;
}

TEST_CASE("crash: before and after every system call of a save, the checkpoint is complete", "[io][crash]") {
  const Directory directory(Directory::in_memory);
  const std::string path = directory / "x";
  const Model old = filled(1), fresh = filled(2);
  const auto save = [&] { io::save_checkpoint(path, fresh); };
  io::save_checkpoint(path, old);
  const std::vector<Call> all = traced(save, SIZE_MAX);
  if (all.empty()) {
    WARN("skipped: this system does not let a process trace its children");
    return;
  }
  CHECK(value_in(path) == 2);
  CHECK(directory.files() == 1);

  // What was synced when: the file before the rename, its directory after, and nothing written to the file between.
  std::size_t file_synced = 0, renamed = 0, directory_synced = 0, last_write = 0, writes = 0;
  std::int64_t file = -1;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i].done || all[i].result < 0) continue;
    if (all[i].number == SYS_write) {
      last_write = i;
      file = all[i].first;
      ++writes;
    }
    if (all[i].number == SYS_fsync && renamed == 0) {
      file_synced = i;
      CHECK(all[i].first == file);
    }
    if (all[i].number == SYS_fsync && renamed != 0) directory_synced = i;
    if (is_rename(all[i].number)) renamed = i;
  }
  CHECK(writes > 1);
  CHECK((0 < last_write && last_write < file_synced && file_synced < renamed && renamed < directory_synced));

  int killed = 0;
  for (std::size_t at = 0; at < all.size(); ++at) {
    io::save_checkpoint(path, old);
    const std::vector<Call> calls = traced(save, at);
    if (calls.size() <= at) continue;  // it got by with a call less
    ++killed;
    const bool in_place =
        std::any_of(calls.begin(), calls.end(), [](const Call& c) { return is_rename(c.number) && c.done; });
    CAPTURE(at, calls.back().number, calls.back().done);
    REQUIRE(value_in(path) == (in_place ? 2 : 1));
  }
  CAPTURE(killed, all.size());
  CHECK(killed > 20);
}

#endif

}  // namespace
}  // namespace ruvector_test_crash
