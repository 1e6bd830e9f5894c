"""`python -m hienet.cli`."""

from hienet.cli import main

main()
