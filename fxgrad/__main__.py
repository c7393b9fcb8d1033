"""`python -m fxgrad`: the command line."""

from fxgrad.commands.cli import main

if __name__ == "__main__":
    main(prog_name="fxgrad")
