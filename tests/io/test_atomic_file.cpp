// SPDX-License-Identifier: MIT
#include <ruvector/io/atomic_file.hpp>

#include "io/files.hpp"
#include "support/catch.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace ruvector_test_atomic_file {
namespace {

using namespace ruvector;
namespace fs = std::filesystem;

using io_files::Directory;

std::string content_of(const std::string& path) {
  io::InputFile file(path);
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read(std::as_writable_bytes(std::span(text)));
  return text;
}

void save(const std::string& path, const std::string& text) {
  io::AtomicFile file(path);
  file.write(text);
  file.commit();
}

// What happens at the n-th system call, counted from 0.
struct Script {
  int calls = 0;
  int at = -1;
  int error = 0;  // the call fails with it; 0: the process dies instead, before or after the call
  bool die_after = false;
  std::size_t most = SIZE_MAX;  // bytes that one write takes
  std::string log = {};
};

// The system's calls, except for what the script says.
struct Scripted {
  Script* script;

  template <class Call>
  auto run(char name, Call&& call) -> decltype(call()) {
    script->log += name;
    const bool now = script->calls++ == script->at;
    if (now && script->error != 0) {
      errno = script->error;
      return -1;
    }
    if (now && !script->die_after) ::_exit(0);
    const auto result = call();
    if (now) ::_exit(0);
    return result;
  }
  int open(const char* path, int flags, ::mode_t mode) {
    return run('o', [&] { return ::open(path, flags, mode); });
  }
  int fchmod(int file, ::mode_t mode) {
    return run('m', [&] { return ::fchmod(file, mode); });
  }
  ::ssize_t write(int file, const void* bytes, std::size_t count) {
    return run('w', [&] { return ::write(file, bytes, std::min(count, script->most)); });
  }
  int fsync(int file) {
    return run('s', [&] { return ::fsync(file); });
  }
  int close(int file) {
    return run('c', [&] { return ::close(file); });
  }
  int rename(const char* from, const char* to) {
    return run('r', [&] { return std::rename(from, to); });
  }
  int unlink(const char* path) {
    return run('u', [&] { return ::unlink(path); });
  }
};

// Three writes, of which the second does not fit in the buffer: 200,011 bytes.
std::string new_content() {
  return "new: " + std::string(200000, 'n') + "| end\n";
}

void save_scripted(const std::string& path, Script& script) {
  const std::string text = new_content();
  io::BasicAtomicFile<Scripted> file(path, Scripted{&script});
  file.write(std::string_view(text).substr(0, 5));
  file.write(std::string_view(text).substr(5, 200000));
  file.write(std::string_view(text).substr(200005));
  file.commit();
}

TEST_CASE("atomic_file: saves, and syncs the file before the rename and the directory after", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  Script script;
  save_scripted(path, script);
  CHECK(content_of(path) == new_content());
  CHECK(script.log == "owwwscorsc");  // open, writes, sync, close; open directory, rename, sync, close
  CHECK(directory.files() == 1);

  save(path, "");
  CHECK(content_of(path).empty());
}

TEST_CASE("atomic_file: without commit nothing changes", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  save(path, "old");
  {
    io::AtomicFile file(path);
    file.write(new_content());
    CHECK(directory.files() == 2);
  }
  CHECK(content_of(path) == "old");
  CHECK(directory.files() == 1);
}

TEST_CASE("atomic_file: whichever call fails, the old file is intact and no temporary is left", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  Script healthy;
  save(path, "old");
  save_scripted(path, healthy);
  REQUIRE(healthy.log == "omwwwscorsc");
  for (const int error : {ENOSPC, EIO, EDQUOT}) {
    for (int at = 0; at < healthy.calls - 1; ++at) {  // the last call closes the directory: nobody cares
      CAPTURE(error, at, healthy.log[std::size_t(at)]);
      save(path, "old");
      Script script{.at = at, .error = error};
      std::string message;
      try {
        save_scripted(path, script);
      } catch (const io::FileError& failure) {
        message = failure.what();
      }
      CHECK_THAT(message, Catch::Matchers::StartsWith(path + ": "));
      CHECK_THAT(message, Catch::Matchers::EndsWith(std::generic_category().message(error)));
      const bool renamed = healthy.log.find('r') < std::size_t(at);
      CHECK(content_of(path) == (renamed ? new_content() : "old"));
      CHECK(directory.files() == 1);
    }
  }
}

TEST_CASE("atomic_file: interrupted calls and short writes are carried on", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  save(path, "old");
  for (int at = 0; at < 11; ++at) {
    const char call = "omwwwscorsc"[at];
    if (call == 'm' || call == 'r') continue;  // these do not return EINTR
    CAPTURE(at, call);
    Script script{.at = at, .error = EINTR, .most = 777};
    save_scripted(path, script);
    CHECK(content_of(path) == new_content());
    CHECK(directory.files() == 1);
  }
  Script nothing_fits{.most = 0};  // a write of 0 bytes is no reason to try for ever
  CHECK_THROWS_WITH(save_scripted(path, nothing_fits), Catch::Matchers::EndsWith(std::generic_category().message(EIO)));
}

// Runs `call` in a child process; its wait status.
template <class Call>
int in_child(Call&& call) {
  const ::pid_t child = ::fork();
  if (child == 0) {
    call();
    ::_exit(7);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST_CASE("atomic_file: the process may die before or after any call", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  for (const bool after : {false, true}) {
    for (int at = 0; at < 10; ++at) {
      const char call = "owwwscorsc"[at];
      CAPTURE(at, call, after);
      fs::remove_all(directory.path);
      fs::create_directory(directory.path);
      int status = in_child([&] {
        Script script{.at = at, .die_after = after, .most = 150000};
        save_scripted(path, script);
      });
      CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
      // No old file: there is none now, or the new one.
      CHECK((!fs::exists(path) || content_of(path) == new_content()));

      save(path, "old");
      status = in_child([&] {
        Script script{.at = at, .die_after = after, .most = 150000};
        save_scripted(path, script);
      });
      CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
      const std::string content = content_of(path);
      CHECK((content == "old" || content == new_content()));
      save(path, "next");  // what the dead left does not stand in the way
      CHECK(content_of(path) == "next");
    }
  }
}

TEST_CASE("atomic_file: a file system that is full keeps the old file", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  save(path, "old");
  const int status = in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const ::rlimit limit{100000, 100000};  // half of the new content: a short write, then an error
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(1);
    try {
      save(path, new_content());
    } catch (const io::FileError&) {
      ::_exit(0);
    }
    ::_exit(2);
  });
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  CHECK(content_of(path) == "old");
  CHECK(directory.files() == 1);
}

TEST_CASE("atomic_file: a file can be saved over while it is mapped", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  const std::string old = "old" + std::string(10000, 'o');
  save(path, old);
  const int file = ::open(path.c_str(), O_RDONLY);
  const char* mapped = static_cast<const char*>(::mmap(nullptr, old.size(), PROT_READ, MAP_SHARED, file, 0));
  REQUIRE(mapped != MAP_FAILED);
  save(path, "short");
  CHECK(std::string_view(mapped, old.size()) == old);  // a file cut short in place would be a SIGBUS here
  CHECK(content_of(path) == "short");
  ::munmap(const_cast<char*>(mapped), old.size());
  ::close(file);
}

TEST_CASE("atomic_file: two writers of one file do not meet", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  io::AtomicFile first(path), second(path);
  first.write("first");
  second.write("second");
  CHECK(directory.files() == 2);
  first.commit();
  CHECK(content_of(path) == "first");
  second.commit();
  CHECK(content_of(path) == "second");
  CHECK(directory.files() == 1);
}

TEST_CASE("atomic_file: permissions of the old file stay", "[io][atomic_file]") {
  const Directory directory;
  const std::string path = directory / "x";
  save(path, "secret");
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
  save(path, "more secret");
  CHECK(fs::status(path).permissions() == (fs::perms::owner_read | fs::perms::owner_write));
}

TEST_CASE("atomic_file: names up to the longest are fine, other paths are refused at once", "[io][atomic_file]") {
  const Directory directory;
  const std::string longest = directory / std::string(255, 'x').c_str();
  save(longest, "x");
  CHECK(content_of(longest) == "x");
  CHECK_THROWS_AS(io::AtomicFile(directory / "missing/x"), io::FileError);
  CHECK_THROWS_AS(io::AtomicFile(directory.path.string()), io::FileError);
  CHECK_THROWS_AS(io::AtomicFile("/dev/null"), io::FileError);
  CHECK(directory.files() == 1);
}

}  // namespace
}  // namespace ruvector_test_atomic_file
