"""From a checkpoint to the file that LAMMPS loads."""
