"""Stage 3: the rewritten program as a drop-in module, its other forms, saving and loading."""

import fxgrad.module.save  # noqa: F401  (a converted module can be pickled as soon as there is one)
from fxgrad.module.converted import ConvertedModule

__all__ = ["ConvertedModule"]
