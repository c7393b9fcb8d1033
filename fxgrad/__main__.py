"""`python -m fxgrad`: the command line."""

from fxgrad.cli import main

main(prog_name="fxgrad")
