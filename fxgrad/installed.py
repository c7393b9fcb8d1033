"""The version of fxgrad."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """The version of the installed package; a phrase that says so if this source checkout is not installed.

    Example:
        >>> version().strip() != ""
        True
    """
    try:
        return metadata.version("fxgrad")
    except metadata.PackageNotFoundError:
        return "unknown (run from source, not installed)"


__version__ = version()
