# build/<type>/sage_attention.node: native/ around the engine's objects. cmake-js gives the Node-API headers.
file(GLOB sage_native_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/native/*.cc")

add_library(${PROJECT_NAME} MODULE ${sage_native_sources} ${sage_engine_objects} ${CMAKE_JS_SRC})
set_target_properties(${PROJECT_NAME} PROPERTIES PREFIX "" SUFFIX ".node")
target_link_libraries(${PROJECT_NAME} PRIVATE sage_flags ${CMAKE_JS_LIB} ${CMAKE_DL_LIBS})
target_include_directories(${PROJECT_NAME} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/csrc/include")
target_include_directories(${PROJECT_NAME} SYSTEM PRIVATE ${CMAKE_JS_INC})
target_compile_definitions(${PROJECT_NAME} PRIVATE
  NAPI_VERSION=8 NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS NODE_ADDON_API_DISABLE_DEPRECATED)

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(${PROJECT_NAME} PRIVATE
    -Wl,--exclude-libs,ALL -Wl,--gc-sections
    # Node unloads an addon when the last worker thread that used it ends; the pool's threads need its code.
    -Wl,-z,nodelete
    # Every symbol is bound at load: what is missing shows at once and not at the first call.
    -Wl,-z,now
    $<$<AND:$<CONFIG:Release>,$<STREQUAL:${SAGE_SANITIZE},>>:-s>)
  # Two mistakes that the linker does not see.
  add_custom_command(TARGET ${PROJECT_NAME} POST_BUILD
    COMMAND "${CMAKE_COMMAND}" -DNM=${CMAKE_NM} -DADDON=$<TARGET_FILE:${PROJECT_NAME}>
      "-DISA_OBJECTS=$<JOIN:${sage_isa_objects},|>"
      -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/check_symbols.cmake"
    VERBATIM)
endif()
