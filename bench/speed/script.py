"""What the scripts that make a page share: options, printing and writing it, and whether all bars are kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch


def main(
    page: Callable[..., tuple[str, bool]], about: str | None, options: Mapping[str, Mapping[str, Any]]
) -> NoReturn:
    """Parse the command line, print the page, write it where `--out` says; the exit status is 1 if a bar is missed.

    Args:
        page: from the options, by name, to the page's text and whether it keeps its bars.
        about: the script's docstring.
        options: option, such as --rounds -> the arguments for argparse. Every script has `--out`.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, arguments in options.items():
        parser.add_argument(name, **arguments)
    parser.add_argument("--out", type=Path, help="write the page there, too")
    chosen = vars(parser.parse_args())
    out = chosen.pop("out")
    torch.set_num_threads(1)
    text, kept = page(**chosen)
    print(text, end="")
    if out:
        out.write_text(text, "utf-8")
    sys.exit(not kept)


def rounds(count: int) -> dict[str, Any]:
    """The option `--rounds`."""
    return {"type": int, "default": count, "help": f"by default {count}"}


ONLY: dict[str, Any] = {"default": "", "help": "rows whose names contain this"}
