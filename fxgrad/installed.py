"""Which fxgrad this is."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The version of the installed package; in words where this is a source checkout that nobody installed.

    Example:
        >>> version().strip() != ""
        True
    """
    try:
        return metadata.version("fxgrad")
    except metadata.PackageNotFoundError:
        return "unknown (run from source, not installed)"
