# Whether the CUDA kernels are built, and how. Included before any target exists: a target takes its CUDA settings
# when it is made. Leaves sage_with_cuda, and with it sage_cuda_architectures.
set(SAGE_CUDA "AUTO" CACHE STRING "CUDA kernels: AUTO (where nvcc 12 or later works), ON (required), OFF")
set_property(CACHE SAGE_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT SAGE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SAGE_CUDA is '${SAGE_CUDA}', expected AUTO, ON or OFF.")
endif()
# The default serves all devices of compute capability 8.x and 9.x by machine code, and later ones by the driver's
# compiler; builds for release name every architecture (scripts/build_cuda.mjs).
set(SAGE_CUDA_ARCHITECTURES "80-real;90-real;80-virtual" CACHE STRING
  "Devices to build machine code (80-real) or PTX (80-virtual) for")
option(SAGE_CUDA_SM90 "Build the kernels of csrc/cuda/sm90, for sm_90a alone" ON)
option(SAGE_CUDA_FP4 "Build the kernels of csrc/cuda/sm120: native for sm_120f, emulated for the other devices" ON)
option(SAGE_EACH_LANE_ARRIVES "For racecheck alone: each lane arrives at an mbarrier for itself, not one for its warp" OFF)
option(SAGE_CUDA_TESTS "Build the tests of the CUDA kernels, which need a device to run" OFF)

set(sage_with_cuda OFF)
set(sage_cuda_why "SAGE_CUDA is OFF")
if(NOT SAGE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE) # a NOTFOUND of an earlier run would stay
    find_program(sage_nvcc nvcc NO_CACHE
      HINTS ENV CUDACXX ENV CUDA_PATH ENV CUDA_HOME ENV CUDAToolkit_ROOT PATH_SUFFIXES bin
      PATHS /usr/local/cuda /opt/cuda)
    if(sage_nvcc AND NOT DEFINED ENV{CUDACXX})
      # check_language tries this one; a CMAKE_CUDA_COMPILER set here would be taken untried.
      set(ENV{CUDACXX} "${sage_nvcc}")
    endif()
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(sage_cuda_why "no nvcc that works")
  else()
    # The list is per target.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES OFF)
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit QUIET)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
      set(sage_cuda_why "nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, older than 12")
    elseif(NOT TARGET CUDA::cudart_static)
      set(sage_cuda_why "the toolkit has no static runtime library")
    else()
      set(sage_with_cuda ON)
    endif()
  endif()
  if(SAGE_CUDA STREQUAL "ON" AND NOT sage_with_cuda)
    message(FATAL_ERROR "SAGE_CUDA is ON, but: ${sage_cuda_why}.\n"
      "Put nvcc on the path, or set CUDACXX to it, or CUDA_PATH to its toolkit.")
  endif()
endif()

if(sage_with_cuda)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(sage_cuda_architectures ${SAGE_CUDA_ARCHITECTURES})
  message(STATUS "sage: CUDA kernels by nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${sage_cuda_architectures}")
else()
  message(STATUS "sage: no CUDA kernels: ${sage_cuda_why}")
endif()

# Flags of every CUDA target: those of the rest, in nvcc's words.
function(sage_cuda_target target architectures)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  target_include_directories(${target} PRIVATE
    "${CMAKE_SOURCE_DIR}/csrc" "${CMAKE_SOURCE_DIR}/csrc/include")
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-O3
    --expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra,-fno-math-errno,-ffp-contract=off>)
  if(SAGE_EACH_LANE_ARRIVES)
    target_compile_definitions(${target} PRIVATE SAGE_EACH_LANE_ARRIVES)
  endif()
endfunction()
