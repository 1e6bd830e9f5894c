"""C++ sources of the LAMMPS pair style, as package data: `hienet build` compiles them."""
