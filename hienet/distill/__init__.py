"""From a crystal and a universal potential, or a program of DFT, to a fast potential of one's own material."""
