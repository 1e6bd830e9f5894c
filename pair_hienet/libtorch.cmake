# Defines the target hienet::libtorch and HIENET_TORCH_LIBRARY_FOLDER.
#
# Not find_package(Torch): with a CUDA build of torch that asks for the CUDA toolkit, which the pair style does not need.

include_guard(GLOBAL)

# Where the Python of Python_EXECUTABLE keeps `package`; nothing is imported.
function(hienet_find_python_package package output)
  set(folder "")
  if(Python_EXECUTABLE)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import importlib.util as u; s = u.find_spec('${package}'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
  set(${output} "${folder}" PARENT_SCOPE)
endfunction()

function(hienet_find_python_prefix output)
  set(prefix "")
  if(Python_EXECUTABLE)
    execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sys; print(sys.prefix)" OUTPUT_VARIABLE prefix
                    OUTPUT_STRIP_TRAILING_WHITESPACE)
  endif()
  set(${output} "${prefix}" PARENT_SCOPE)
endfunction()

hienet_find_python_package(torch HIENET_TORCH_FOLDER)
find_path(HIENET_TORCH_INCLUDE torch/script.h HINTS "${HIENET_TORCH_FOLDER}/include" REQUIRED)
find_library(HIENET_TORCH_LIBRARY torch HINTS "${HIENET_TORCH_FOLDER}/lib" REQUIRED)
get_filename_component(HIENET_TORCH_LIBRARY_FOLDER "${HIENET_TORCH_LIBRARY}" DIRECTORY)

# LAMMPS is compiled with the C++11 string ABI; some older wheels of torch are not.
find_file(torch_config TorchConfig.cmake PATHS "${HIENET_TORCH_LIBRARY_FOLDER}/../share/cmake/Torch" NO_DEFAULT_PATH)
if(torch_config)
  file(STRINGS "${torch_config}" old_abi REGEX "_GLIBCXX_USE_CXX11_ABI=0")
  if(old_abi)
    message(FATAL_ERROR "this torch was built with the old C++ string ABI and cannot be linked with LAMMPS; "
                        "install torch 2.7 or newer")
  endif()
endif()

add_library(hienet::libtorch INTERFACE IMPORTED)
target_include_directories(hienet::libtorch SYSTEM INTERFACE "${HIENET_TORCH_INCLUDE}"
                           "${HIENET_TORCH_INCLUDE}/torch/csrc/api/include")
# no-as-needed: nothing refers to libtorch_cuda by name, and without it a CUDA build runs on the CPU.
set(libraries "-Wl,--no-as-needed")
foreach(name torch torch_cpu c10 torch_cuda c10_cuda)
  if(EXISTS "${HIENET_TORCH_LIBRARY_FOLDER}/lib${name}.so")
    list(APPEND libraries "${HIENET_TORCH_LIBRARY_FOLDER}/lib${name}.so")
  endif()
endforeach()
target_link_libraries(hienet::libtorch INTERFACE ${libraries} "-Wl,--as-needed")
message(STATUS "torch: ${HIENET_TORCH_LIBRARY_FOLDER}")

# hienet::openmp: at::parallel_for, a template, is a plain loop in sources that are compiled without OpenMP. Linked with the
# runtime that torch brings: a second one would not know torch's number of threads.
find_package(OpenMP REQUIRED COMPONENTS CXX)
add_library(hienet::openmp INTERFACE IMPORTED)
target_compile_options(hienet::openmp INTERFACE ${OpenMP_CXX_FLAGS})
file(GLOB HIENET_OPENMP_LIBRARY "${HIENET_TORCH_LIBRARY_FOLDER}/libgomp*.so*"
     "${HIENET_TORCH_LIBRARY_FOLDER}/../../torch.libs/libgomp*.so*")
if(NOT HIENET_OPENMP_LIBRARY)
  set(HIENET_OPENMP_LIBRARY ${OpenMP_CXX_LIBRARIES})
endif()
list(GET HIENET_OPENMP_LIBRARY 0 HIENET_OPENMP_LIBRARY)
target_link_libraries(hienet::openmp INTERFACE "${HIENET_OPENMP_LIBRARY}")
get_filename_component(HIENET_OPENMP_LIBRARY_FOLDER "${HIENET_OPENMP_LIBRARY}" DIRECTORY)
message(STATUS "OpenMP: ${HIENET_OPENMP_LIBRARY}")
