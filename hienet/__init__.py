"""HIENet: a hybrid invariant-equivariant machine-learned interatomic potential, for LAMMPS and ASE."""

__version__ = "0.1.0"
