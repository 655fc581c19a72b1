# The CPU engine, csrc/, as one object library per instruction set plus one for the rest.
#
# csrc/cpu/**/*_kernels.cc are compiled once per instruction set. SAGE_ISA_SUFFIX gives each copy's entry points a
# name of their own; everything else in such a file must have internal linkage, or the linker may run AVX-512 code
# on a processor without it. All other files are compiled once, for the oldest processor of the target.
include(CheckCXXCompilerFlag)

file(READ "${CMAKE_CURRENT_SOURCE_DIR}/package.json" sage_package)
string(JSON sage_version GET "${sage_package}" version)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS package.json)

file(GLOB_RECURSE sage_cpu_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/*.cc")
set(sage_kernel_sources ${sage_cpu_sources})
list(FILTER sage_kernel_sources INCLUDE REGEX "_kernels\\.cc$")
list(FILTER sage_cpu_sources EXCLUDE REGEX "_kernels\\.cc$")
# For AMX alone, below.
set(sage_amx_source "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/amx/forward_amx.cc")
list(REMOVE_ITEM sage_cpu_sources "${sage_amx_source}")

# Without these there is no engine; addon.cmake finds whatever else is missing after linking.
foreach(required cpu/forward_dispatch.cc cpu/backward_dispatch.cc)
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/${required}")
    message(FATAL_ERROR "csrc/${required} is missing: the checkout or the package is incomplete.")
  endif()
endforeach()
if(NOT sage_kernel_sources)
  message(FATAL_ERROR "csrc/cpu holds no *_kernels.cc: the checkout or the package is incomplete.")
endif()

# Includes and definitions of all parts of the engine.
add_library(sage_engine_flags INTERFACE)
target_include_directories(sage_engine_flags INTERFACE
  "${CMAKE_CURRENT_SOURCE_DIR}/csrc" "${CMAKE_CURRENT_SOURCE_DIR}/csrc/include")
target_link_libraries(sage_engine_flags INTERFACE sage_flags)

set(sage_engine_objects "")
set(sage_isa_objects "")

function(sage_isa suffix)
  add_library(sage_${suffix} OBJECT ${sage_kernel_sources})
  target_link_libraries(sage_${suffix} PRIVATE sage_engine_flags)
  target_compile_options(sage_${suffix} PRIVATE ${ARGN}
    # GCC 12 warns of the deliberately undefined registers in its own AVX-512 header (its bug 105593).
    $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized -Wno-maybe-uninitialized>)
  target_compile_definitions(sage_${suffix} PRIVATE SAGE_ISA_SUFFIX=${suffix})
  list(APPEND sage_engine_objects $<TARGET_OBJECTS:sage_${suffix}>)
  set(sage_engine_objects ${sage_engine_objects} PARENT_SCOPE)
  list(APPEND sage_isa_objects $<TARGET_OBJECTS:sage_${suffix}>)
  set(sage_isa_objects ${sage_isa_objects} PARENT_SCOPE)
endfunction()

set(sage_avx2_flags -mavx2 -mfma -mf16c)
set(sage_avx512_flags ${sage_avx2_flags}
  -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
set(sage_avx512_bf16_flags ${sage_avx512_flags} -mavx512bf16)
set(sage_amx_flags ${sage_avx512_bf16_flags} -mamx-tile -mamx-int8 -mamx-bf16)

set(sage_isas portable)
sage_isa(portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  foreach(isa avx2 avx512 avx512_bf16 amx)
    string(TOUPPER ${isa} upper)
    string(REPLACE ";" " " flags "${sage_${isa}_flags}")
    check_cxx_compiler_flag("${flags}" SAGE_COMPILER_HAS_${upper})
    if(NOT SAGE_COMPILER_HAS_${upper})
      message(STATUS "sage: this compiler has no ${isa}; such machines run the next best path")
      continue()
    endif()
    # SAGE_WITH_<ISA> tells the files compiled once which paths exist.
    target_compile_definitions(sage_engine_flags INTERFACE SAGE_WITH_${upper})
    list(APPEND sage_isas ${isa})
  endforeach()
  if(SAGE_COMPILER_HAS_AVX2)
    sage_isa(avx2 ${sage_avx2_flags} -DSAGE_ISA_AVX2)
  endif()
  if(SAGE_COMPILER_HAS_AVX512)
    sage_isa(avx512 ${sage_avx512_flags} -DSAGE_ISA_AVX512)
  endif()
  if(SAGE_COMPILER_HAS_AVX512_BF16)
    sage_isa(avx512_bf16 ${sage_avx512_bf16_flags} -DSAGE_ISA_AVX512 -DSAGE_ISA_AVX512_BF16)
  endif()
  # AMX has kernels for the forward pass alone.
  set(sage_all_kernel_sources ${sage_kernel_sources})
  set(sage_kernel_sources "${sage_amx_source}")
  if(SAGE_COMPILER_HAS_AMX)
    sage_isa(amx ${sage_amx_flags}
      -DSAGE_ISA_AVX512 -DSAGE_ISA_AVX512_BF16 -DSAGE_ISA_AMX)
  endif()
  if(SAGE_TESTS AND SAGE_COMPILER_HAS_AVX512_BF16)
    # The same kernels with emulated tiles, for tests; no part of the engine.
    set(sage_engine_parts ${sage_engine_objects})
    set(sage_isa_parts ${sage_isa_objects})
    sage_isa(amx_emulated ${sage_avx512_bf16_flags}
      -DSAGE_ISA_AVX512 -DSAGE_ISA_AVX512_BF16 -DSAGE_ISA_AMX -DSAGE_AMX_EMULATED)
    set(sage_engine_objects ${sage_engine_parts})
    set(sage_isa_objects ${sage_isa_parts})
  endif()
  set(sage_kernel_sources ${sage_all_kernel_sources})
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  # NEON is part of the base architecture; dot products came with 8.2 and are asked for at run time.
  set(sage_neon_dot_flags -march=armv8.2-a+dotprod)
  check_cxx_compiler_flag("${sage_neon_dot_flags}" SAGE_COMPILER_HAS_NEON_DOT)
  target_compile_definitions(sage_engine_flags INTERFACE SAGE_WITH_NEON)
  list(APPEND sage_isas neon)
  sage_isa(neon -DSAGE_ISA_NEON)
  if(SAGE_COMPILER_HAS_NEON_DOT)
    target_compile_definitions(sage_engine_flags INTERFACE SAGE_WITH_NEON_DOT)
    list(APPEND sage_isas neon_dot)
    sage_isa(neon_dot ${sage_neon_dot_flags} -DSAGE_ISA_NEON -DSAGE_ISA_NEON_DOT)
  endif()
endif()

set(sage_other_sources "${CMAKE_CURRENT_SOURCE_DIR}/csrc/problem.cc" ${sage_cpu_sources})
# What the FP4 kernels share with their simulation, without nvcc.
file(GLOB sage_fp4_plan_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/sm120/*.cc")
if(NOT sage_with_cuda)
  list(APPEND sage_other_sources "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/without_cuda.cc")
elseif(SAGE_CUDA_FP4)
  list(APPEND sage_other_sources ${sage_fp4_plan_sources})
endif()
add_library(sage_engine OBJECT ${sage_other_sources})
target_link_libraries(sage_engine PUBLIC sage_engine_flags)
# Only there, so that a new version recompiles one file.
set_source_files_properties("${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/cpu_features.cc" PROPERTIES
  COMPILE_DEFINITIONS SAGE_VERSION="${sage_version}")
list(APPEND sage_engine_objects $<TARGET_OBJECTS:sage_engine>)

# The CUDA engine, csrc/cuda/. The runtime library is linked in; the driver is looked up at run time.
if(sage_with_cuda)
  file(GLOB_RECURSE sage_cuda_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cu")
  # What has no kernels, and needs the CPU engine's threads beside them.
  set(sage_cuda_host_sources ${sage_cuda_sources})
  list(FILTER sage_cuda_host_sources INCLUDE REGEX "/csrc/cuda/host/")
  list(FILTER sage_cuda_sources EXCLUDE REGEX "/csrc/cuda/host/")
  # What only sm_90a has: csrc/cuda/sm90, and the *_sm90.cu elsewhere.
  set(sage_sm90_sources ${sage_cuda_sources})
  set(sage_fp4_sources ${sage_cuda_sources})
  list(FILTER sage_cuda_sources EXCLUDE REGEX "/csrc/cuda/sm90/|_sm90\\.cu$|/csrc/cuda/sm120/")
  # What needs e4m3 products, sm_89 and later: csrc/cuda/int8/e4m3. Machine code for 8.9 where there is any for 8.x.
  set(sage_e4m3_sources ${sage_cuda_sources})
  list(FILTER sage_e4m3_sources INCLUDE REGEX "/csrc/cuda/int8/e4m3/")
  list(FILTER sage_cuda_sources EXCLUDE REGEX "/csrc/cuda/int8/e4m3/")
  add_library(sage_cuda OBJECT ${sage_cuda_sources})
  set(sage_cuda_objects $<TARGET_OBJECTS:sage_cuda>)
  sage_cuda_target(sage_cuda "${sage_cuda_architectures}")
  set(sage_sm90_architecture "")
  if("90-real" IN_LIST sage_cuda_architectures OR "90a-real" IN_LIST sage_cuda_architectures)
    set(sage_sm90_architecture 90a-real)
    list(FILTER sage_sm90_sources INCLUDE REGEX "/csrc/cuda/sm90/|_sm90\\.cu$")
    if(SAGE_CUDA_SM90)
      target_compile_definitions(sage_cuda PRIVATE SAGE_WITH_SM90)
    else()
      list(FILTER sage_sm90_sources EXCLUDE REGEX "/csrc/cuda/sm90/")
    endif()
    add_library(sage_cuda_sm90 OBJECT ${sage_sm90_sources})
    sage_cuda_target(sage_cuda_sm90 90a-real)
    target_compile_definitions(sage_cuda PRIVATE SAGE_WITH_EXACT_SM90)
    list(APPEND sage_cuda_objects $<TARGET_OBJECTS:sage_cuda_sm90>)
  endif()
  if(NOT CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
    set(sage_e4m3_architectures "")
    foreach(architecture ${sage_cuda_architectures})
      if(architecture MATCHES "^8[0-9](-.*)?$")
        string(REGEX REPLACE "^8[0-9]" "89" architecture "${architecture}")
      endif()
      list(APPEND sage_e4m3_architectures "${architecture}")
    endforeach()
    list(REMOVE_DUPLICATES sage_e4m3_architectures)
    add_library(sage_cuda_e4m3 OBJECT ${sage_e4m3_sources})
    sage_cuda_target(sage_cuda_e4m3 "${sage_e4m3_architectures}")
    target_compile_definitions(sage_cuda_e4m3 PRIVATE SAGE_WITH_E4M3)
    target_compile_definitions(sage_cuda PRIVATE SAGE_WITH_E4M3)
    list(APPEND sage_cuda_objects $<TARGET_OBJECTS:sage_cuda_e4m3>)
  endif()
  # fp4 and fp4_fp8, csrc/cuda/sm120: machine code for Blackwell's FP4 products where nvcc knows them, and the exact
  # emulation for the older devices of the list. No PTX: what the driver would compile of it is the emulation.
  set(sage_fp4_native "")
  if(SAGE_CUDA_FP4)
    list(FILTER sage_fp4_sources INCLUDE REGEX "/csrc/cuda/sm120/")
    set(sage_fp4_architectures ${sage_cuda_architectures})
    list(FILTER sage_fp4_architectures INCLUDE REGEX "^[89][0-9]a?(-real)?$")
    if("80-real" IN_LIST sage_fp4_architectures)
      list(FILTER sage_fp4_architectures EXCLUDE REGEX "^8[1-9]") # these run it too, and none of them faster
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      set(sage_fp4_native sm_120f)
    else()
      message(STATUS "sage: no FP4 kernels for Blackwell: nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, older than 12.8")
    endif()
    if(sage_fp4_native OR sage_fp4_architectures)
      if(NOT sage_fp4_architectures)
        set(sage_fp4_architectures OFF)
      endif()
      add_library(sage_cuda_fp4 OBJECT ${sage_fp4_sources})
      sage_cuda_target(sage_cuda_fp4 "${sage_fp4_architectures}")
      # The emulation has the simulation's bits, and codes those of the CPU: nothing may be contracted.
      target_compile_options(sage_cuda_fp4 PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>)
      if(sage_fp4_native)
        # By flag: versions of CMake before 4.1 do not know architectures that end in f.
        target_compile_options(sage_cuda_fp4 PRIVATE
          $<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_120f,code=sm_120f>)
      endif()
      target_compile_definitions(sage_cuda PRIVATE SAGE_WITH_FP4)
      list(APPEND sage_cuda_objects $<TARGET_OBJECTS:sage_cuda_fp4>)
    endif()
  endif()
  # "80-real;90-real;80-virtual" is told as "sm_80 sm_90 compute_80".
  set(sage_cuda_names ${sage_cuda_architectures} ${sage_sm90_architecture} ${sage_fp4_native})
  list(REMOVE_DUPLICATES sage_cuda_names)
  list(TRANSFORM sage_cuda_names REPLACE "^([0-9]+[af]?)-virtual$" "compute_\\1")
  list(TRANSFORM sage_cuda_names REPLACE "^([0-9]+[af]?)(-real)?$" "sm_\\1")
  list(JOIN sage_cuda_names " " sage_cuda_names)
  set_source_files_properties("${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/device.cu" PROPERTIES
    COMPILE_DEFINITIONS "SAGE_CUDA_ARCHITECTURE_NAMES=\"${sage_cuda_names}\"")
  add_library(sage_cuda_host OBJECT ${sage_cuda_host_sources})
  sage_cuda_target(sage_cuda_host 80-virtual) # no device code: any architecture will do
  list(APPEND sage_engine_objects ${sage_cuda_objects} $<TARGET_OBJECTS:sage_cuda_host>)
  target_link_libraries(sage_flags INTERFACE $<LINK_ONLY:CUDA::cudart_static>)
endif()

list(JOIN sage_isas ", " sage_isa_list)
message(STATUS "sage: version ${sage_version}, instruction sets ${sage_isa_list}")
