"""A small world in which the right explanation is known: digits on cluttered canvases, a ViT that reads them.

    from fxgrad.demo import canvas, digits_vit, preprocess

    picture = canvas(7)                                     # image, labels, and each digit's own pixels
    logits = digits_vit()(preprocess(picture.image))        # trained on other scans than this picture's

`fxgrad.demo.models` has eight architectures, CLIP with a text tower among them; `python -m fxgrad.demo.train NAME`
makes a model's weights anew. Needs the packages timm, scikit-learn and safetensors.
"""

from fxgrad.demo.canvases import SPLITS, Canvas, batches, canvas, split_scans
from fxgrad.demo.model import CLASS_NAMES, digits_vit, preprocess

__all__ = ["CLASS_NAMES", "SPLITS", "Canvas", "batches", "canvas", "digits_vit", "preprocess", "split_scans"]
