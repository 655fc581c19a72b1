# One executable per csrc/test/*_test.cc, run by ctest. SAGE_SANITIZE=thread is meant for these.
enable_testing()
file(GLOB sage_test_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/test/*_test.cc")
foreach(source ${sage_test_sources})
  get_filename_component(name "${source}" NAME_WE)
  add_executable(${name} "${source}" ${sage_engine_objects})
  target_link_libraries(${name} PRIVATE sage_engine_flags)
  add_test(NAME ${name} COMMAND ${name})
endforeach()

# The AMX kernels over emulated tiles, for processors without AMX.
if(TARGET sage_amx_emulated)
  target_sources(amx_test PRIVATE $<TARGET_OBJECTS:sage_amx_emulated>)
elseif(TARGET amx_test)
  set_property(TEST amx_test PROPERTY DISABLED TRUE)
  set_target_properties(amx_test PROPERTIES EXCLUDE_FROM_ALL TRUE)
endif()

# Not a test: times the engine without Node (docs/kernels_cpu.md).
add_executable(forward_bench "${CMAKE_CURRENT_SOURCE_DIR}/csrc/test/forward_bench.cc" ${sage_engine_objects})
target_link_libraries(forward_bench PRIVATE sage_engine_flags)
