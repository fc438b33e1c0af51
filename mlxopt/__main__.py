"""`python -m mlxopt` is the command `mlxopt`."""

from mlxopt.cli import main

main()
