"""The explainer: forward and attribution as one program that runs without fxgrad, without autograd, without Python.

The steps, one file each: settings (what to compute), compute and blocks (how), tracing (into one program), simplify and
merge (a smaller one), formats (write a file). `entry` leads through them; `run` is for who has the file.
"""

from typing import TYPE_CHECKING

from fxgrad import lazy

if TYPE_CHECKING:
    from fxgrad.explainer.entry import export_explainer
    from fxgrad.explainer.settings import METHODS

__all__ = ["METHODS", "export_explainer"]

__getattr__, __dir__ = lazy.names(__name__, {"METHODS": "settings", "export_explainer": "entry"})
