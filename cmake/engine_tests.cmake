# One executable per csrc/test/*_test.cc, run by ctest. SAGE_SANITIZE=thread is meant for these.
#
# Cross-compiled, ctest runs them by CMAKE_CROSSCOMPILING_EMULATOR: a part of the cases, as an emulator is slow, and
# nothing that measures the machine.
enable_testing()
file(GLOB sage_test_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/test/*_test.cc")
# The CUDA kernels that also run on the host (csrc/simulate), for the tests named simulate_*.
file(GLOB sage_simulate_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/simulate/*.cc")
if(NOT sage_with_cuda OR NOT SAGE_CUDA_FP4)
  list(APPEND sage_simulate_sources ${sage_fp4_plan_sources}) # otherwise the engine has them
endif()
add_library(sage_simulate OBJECT ${sage_simulate_sources})
target_link_libraries(sage_simulate PUBLIC sage_engine_flags)
if(SAGE_SANITIZE STREQUAL "thread")
  # The sanitizer follows no fibers.
  list(FILTER sage_test_sources EXCLUDE REGEX "/simulate_")
endif()
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  list(FILTER sage_test_sources EXCLUDE REGEX "/large_pages_test") # it reads /proc
endif()
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR SAGE_SANITIZE)
  # It limits the address space, of which sanitizers take terabytes.
  list(FILTER sage_test_sources EXCLUDE REGEX "/kv_cache_memory_test")
endif()
set(sage_test_arguments "")
if(CMAKE_CROSSCOMPILING)
  list(FILTER sage_test_sources EXCLUDE REGEX "/(thread_pool_test|amx_test|forward_paths_test|kv_cache_memory_test|large_pages_test|simulate_.*)\\.cc$")
  set(sage_test_arguments quick)
endif()
foreach(source ${sage_test_sources})
  get_filename_component(name "${source}" NAME_WE)
  add_executable(${name} "${source}" ${sage_engine_objects})
  target_link_libraries(${name} PRIVATE sage_engine_flags)
  if(name MATCHES "^simulate_")
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:sage_simulate>)
  endif()
  add_test(NAME ${name} COMMAND ${name} ${sage_test_arguments})
endforeach()

# The AMX kernels over emulated tiles, for processors without AMX.
if(TARGET sage_amx_emulated)
  target_sources(amx_test PRIVATE $<TARGET_OBJECTS:sage_amx_emulated>)
elseif(TARGET amx_test)
  set_property(TEST amx_test PROPERTY DISABLED TRUE)
  set_target_properties(amx_test PROPERTIES EXCLUDE_FROM_ALL TRUE)
endif()

# Not tests: they time the engine without Node (docs/kernels_cpu.md).
foreach(name forward_bench backward_bench)
  add_executable(${name} "${CMAKE_CURRENT_SOURCE_DIR}/csrc/test/${name}.cc" ${sage_engine_objects})
  target_link_libraries(${name} PRIVATE sage_engine_flags)
endforeach()
