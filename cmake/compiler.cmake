# Flags of every target.
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  message(FATAL_ERROR "The engine needs GCC or Clang; this is ${CMAKE_CXX_COMPILER_ID}.")
endif()

# cmake-js overrides CMAKE_CXX_FLAGS, so flags travel on an interface target.
add_library(sage_flags INTERFACE)
target_compile_options(sage_flags INTERFACE
  -O3
  # a * b + c is rounded twice wherever the source says so: the quantisers are specified to the bit.
  -ffp-contract=off
  # sqrt and rint become one instruction; nobody reads errno, or the floating-point exception flags.
  # Neither changes a value, NaN and Infinity included. Never -ffast-math, which does.
  -fno-math-errno
  -fno-trapping-math
  -Wall -Wextra)

if(SAGE_SANITIZE)
  set(sage_sanitizers address undefined thread)
  if(NOT SAGE_SANITIZE IN_LIST sage_sanitizers)
    message(FATAL_ERROR "SAGE_SANITIZE is '${SAGE_SANITIZE}', expected address, undefined or thread.")
  endif()
  target_compile_options(sage_flags INTERFACE
    -fsanitize=${SAGE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g)
  target_link_options(sage_flags INTERFACE -fsanitize=${SAGE_SANITIZE})
endif()

find_package(Threads REQUIRED)
target_link_libraries(sage_flags INTERFACE Threads::Threads)
