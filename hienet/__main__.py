"""`python -m hienet`."""

from hienet.cli import main

main()
