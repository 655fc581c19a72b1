# One executable per csrc/test/*_test.cc, run by ctest. SAGE_SANITIZE=thread is meant for these.
enable_testing()
file(GLOB sage_test_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/test/*_test.cc")
foreach(source ${sage_test_sources})
  get_filename_component(name "${source}" NAME_WE)
  add_executable(${name} "${source}" ${sage_engine_objects})
  target_link_libraries(${name} PRIVATE sage_engine_flags)
  add_test(NAME ${name} COMMAND ${name})
endforeach()
