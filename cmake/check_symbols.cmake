# Fails the build, and takes the addon away, for two mistakes that no linker reports:
#   cmake -DNM=nm -DADDON=sage_attention.node -DISA_OBJECTS="a.o|b.o" -P check_symbols.cmake
set(complaints "")

function(list_symbols result file)
  execute_process(COMMAND "${NM}" -C ${ARGN} "${file}"
    OUTPUT_VARIABLE symbols RESULT_VARIABLE status ERROR_VARIABLE message)
  if(NOT status EQUAL 0)
    file(REMOVE "${ADDON}")
    message(FATAL_ERROR "${NM} cannot read ${file}: ${message}")
  endif()
  set(${result} "${symbols}" PARENT_SCOPE)
endfunction()

# 1. A missing part of the engine. A module may leave symbols to Node, so the linker lets it pass.
list_symbols(undefined "${ADDON}" -D --undefined-only)
string(REGEX MATCHALL "U sage::[^\n]*" missing "${undefined}")
foreach(symbol IN LISTS missing)
  list(APPEND complaints "not in the addon: ${symbol}")
endforeach()

# 2. An inline function or template with external linkage in a file that is compiled once per instruction set. The
# linker keeps one copy for all, be it AVX-512 code on the path of an older processor. (W: weak symbols of code.)
string(REPLACE "|" ";" objects "${ISA_OBJECTS}")
foreach(object IN LISTS objects)
  list_symbols(defined "${object}" --defined-only)
  string(REGEX MATCHALL "[0-9a-f]+ W [^\n]*" shared "${defined}")
  foreach(symbol IN LISTS shared)
    string(REGEX REPLACE "^[0-9a-f]+ W " "" name "${symbol}")
    list(APPEND complaints "shared between instruction sets, make it static: ${name} in ${object}")
  endforeach()
endforeach()

if(complaints)
  file(REMOVE "${ADDON}")
  list(REMOVE_DUPLICATES complaints)
  list(JOIN complaints "\n  " lines)
  message(FATAL_ERROR "The addon is not fit for use:\n  ${lines}")
endif()
