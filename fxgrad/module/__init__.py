"""Stage 3: the rewritten program as a drop-in module; its other forms, and its files."""

from fxgrad.module.converted import ConvertedModule

__all__ = ["ConvertedModule"]
