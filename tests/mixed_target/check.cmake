# SPDX-License-Identifier: MIT
#
# cmake -D COMPILER=<c++> -D COMPILER_ID=<id> -D NM= -D OBJCOPY= -D LINKER= -D INCLUDES=<options> -D WORK=<dir>
#       -P check.cmake
#
# One program of files that are compiled for different targets: no symbol of ours is shared, every link order gives the
# results of each file alone, and with hermetic objects (README, "One program for several CPUs") the program runs on a
# CPU of 2008.

cmake_minimum_required(VERSION 3.24)

set(names baseline baseline_debug avx2 avx512)
set(flags_baseline -DNDEBUG)
set(flags_baseline_debug)
set(flags_avx2 -mavx2 -mfma -DNDEBUG)
set(flags_avx512 -march=x86-64-v4 -DNDEBUG)
set(feature_baseline sse2)
set(feature_baseline_debug sse2)
set(feature_avx2 avx2)
set(feature_avx512 avx512vl)

cmake_path(GET CMAKE_CURRENT_LIST_FILE PARENT_PATH source)
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")

function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${WORK}" RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE error)
  if(NOT code EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "failed (${code}): ${command}\n${error}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

# Compiles main.cpp to "<program>.o", which calls the entries of the names.
function(compile_main program)
  set(entries)
  foreach(name IN LISTS ARGN)
    string(APPEND entries " X(entry_${name}, \"${feature_${name}}\")")
  endforeach()
  run("${COMPILER}" -std=c++20 "-DRUVECTOR_ENTRIES=${entries}" -c "${source}/main.cpp" -o ${program}.o)
endfunction()

# Links "<main>.o" and the objects "<prefix><name>.o" of the names, in this order, and runs the program.
function(link_and_run main prefix)
  list(TRANSFORM ARGN PREPEND "${prefix}")
  list(TRANSFORM ARGN APPEND ".o")
  run("${COMPILER}" ${main}.o ${ARGN} -pthread -o ${prefix}${main})
  run("${WORK}/${prefix}${main}")
  set(output "${output}" PARENT_SCOPE)
endfunction()

# The lines of a program's output that belong to one entry.
function(lines_of output name lines)
  string(REGEX MATCHALL "entry_${name} [^\n]*\n" found "${output}")
  set(${lines} "${found}" PARENT_SCOPE)
endfunction()

# Compiles kernel.cpp to "<prefix><name>.o", and sets alone_<prefix><name> to the results of a program of it alone.
function(compile prefix name)
  set(unique)
  if(COMPILER_ID STREQUAL "GNU")
    set(unique -fno-gnu-unique)
  endif()
  run("${COMPILER}" -std=c++20 -O2 ${flags_${name}} ${unique} ${INCLUDES} -DRUVECTOR_ENTRY=entry_${name} ${ARGN}
      -c "${source}/kernel.cpp" -o ${prefix}${name}.o)
  compile_main(main_${name} ${name})
  link_and_run(main_${name} "${prefix}" ${name})
  set(alone_${prefix}${name} "${output}" PARENT_SCOPE)
endfunction()

# Fails unless an output has the lines of each of the names as their programs alone have them.
function(compare what output prefix)
  foreach(name IN LISTS ARGN)
    lines_of("${output}" ${name} lines)
    lines_of("${alone_${prefix}${name}}" ${name} expected)
    if(NOT lines STREQUAL expected)
      message(FATAL_ERROR "${what}: ${name} differs from its own single build")
    endif()
  endforeach()
endfunction()

compile_main(main ${names})
foreach(name IN LISTS names)
  compile("" ${name})

  # Its weak symbols in our namespace.
  run("${NM}" ${name}.o)
  string(REGEX MATCHALL "[0-9a-f ]+ [WVu] [^\n]*8ruvector[^\n]*" weak "${output}")
  list(TRANSFORM weak REPLACE "^[0-9a-f ]+ [WVu] " "")
  set(weak_${name} ${weak})
  list(LENGTH weak count)
  if(count LESS 3)
    message(FATAL_ERROR "${name}: only ${count} weak symbols of ours, the comparison would show nothing")
  endif()
endforeach()

# No two of them share a symbol.
foreach(a IN LISTS names)
  foreach(b IN LISTS names)
    if(a STREQUAL b)
      continue()
    endif()
    set(shared)
    foreach(symbol IN LISTS weak_${a})
      if(symbol IN_LIST weak_${b})
        list(APPEND shared "${symbol}")
      endif()
    endforeach()
    if(shared)
      message(FATAL_ERROR "${a} and ${b} share ${shared}")
    endif()
  endforeach()
endforeach()

# Every link order.
set(orders 0)
function(check_order)
  link_and_run(main "" ${ARGN})
  compare("linked as ${ARGN}" "${output}" "" ${names})
  math(EXPR orders "${orders} + 1")
  set(orders ${orders} PARENT_SCOPE)
endfunction()
foreach(a IN LISTS names)
  foreach(b IN LISTS names)
    foreach(c IN LISTS names)
      foreach(d IN LISTS names)
        set(order ${a} ${b} ${c} ${d})
        list(REMOVE_DUPLICATES order)
        list(LENGTH order length)
        if(length EQUAL 4)
          check_order(${order})
        endif()
      endforeach()
    endforeach()
  endforeach()
endforeach()
if(NOT orders EQUAL 24)
  message(FATAL_ERROR "${orders} link orders were tried, not 24")
endif()

# Hermetic objects share nothing, not even templates of Eigen and std. The most modern stands first, so that the linker
# would prefer its.
foreach(name IN LISTS names)
  compile(shared_ ${name} -DRUVECTOR_SHARED)
  run("${LINKER}" -r --force-group-allocation shared_${name}.o -o hermetic_${name}.o)
  run("${OBJCOPY}" --keep-global-symbol=entry_${name} hermetic_${name}.o)
endforeach()
link_and_run(main hermetic_ avx512 avx2 baseline_debug baseline)
compare("hermetic" "${output}" shared_ ${names})

find_program(QEMU qemu-x86_64)
if(QEMU)
  run("${QEMU}" -cpu Nehalem "${WORK}/hermetic_main")
  if(output MATCHES "entry_avx")
    message(FATAL_ERROR "a CPU without AVX was given an AVX kernel")
  endif()
  compare("on a CPU without AVX" "${output}" shared_ baseline baseline_debug)
else()
  message("note: qemu-x86_64 (package qemu-user) is not installed, the run on an old CPU was left out")
endif()
