"""What pages without other files share: the frame, a picture within the text, and writing them."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from numpy.typing import NDArray
from PIL import Image

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title></head><body style="margin:2rem auto;max-width:{width};padding:0 1rem">
{fragment}
</body></html>
"""


def page(title: str, fragment: str, width: str = "60rem") -> str:
    """A whole page around a fragment.

    Example:
        >>> page("a < b", "<p>text</p>").splitlines()[2].partition("</head>")[0]
        '<title>a &lt; b</title>'
    """
    return _PAGE.format(title=html.escape(title), fragment=fragment, width=width)


def as_url(pixels: NDArray[Any]) -> str:
    """A picture, uint8 (rows, columns, 3), as a URL that has all of it.

    Example:
        >>> import numpy as np
        >>> as_url(np.zeros((2, 2, 3), np.uint8)).partition(",")[0]
        'data:image/png;base64'
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def rounded(values: list[Any], digits: int = 6) -> list[Any]:
    """Numbers with so many digits; six are more than a page shows.

    Example:
        >>> rounded([1 / 3, [2 / 3]], 2)
        [0.33, [0.67]]
    """
    return [rounded(v, digits) if isinstance(v, list) else float(f"{v:.{digits}g}") for v in values]
