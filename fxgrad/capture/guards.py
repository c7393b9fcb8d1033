"""Drop the guards that torch.export writes beside a program."""

from __future__ import annotations

from torch.export import ExportedProgram


def without_guards(program: ExportedProgram) -> ExportedProgram:
    """The same program, changed in place: its guards on sizes are dropped.

    torch runs them as code when it decomposes the program. That fails where the model's forward takes **kwargs, since
    the code names these inputs as they are in no graph. `capture/checks.py` keeps what must hold of sizes.

    Args:
        program: a fresh one, not the user's.

    Example:
        >>> import torch
        >>> program = torch.export.export(torch.nn.GELU(), (torch.ones(2, 3),))
        >>> without_guards(program) is program
        True
    """
    if hasattr(program, "_guards_code"):
        program._guards_code = []
    return program
