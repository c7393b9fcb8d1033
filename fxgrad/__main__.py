"""`python -m fxgrad`: the command line."""

from fxgrad.cli import main

if __name__ == "__main__":
    main(prog_name="fxgrad")
