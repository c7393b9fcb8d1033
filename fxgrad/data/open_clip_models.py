"""Models of open_clip."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fxgrad.data import reach
from fxgrad.data.clip import Clip, Tokenizer
from fxgrad.data.pictures import Preprocessing
from fxgrad.data.specs import Built, Wanted
from fxgrad.errors import CaptureError, one_line


class OpenClip(Clip):
    """A model of open_clip."""

    def encode_image(self, image: Tensor) -> Tensor:
        embedded: Tensor = self.clip.encode_image(image)
        return embedded

    def encode_text(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.clip.encode_text(ids)
        return embedded


def open_clip_model(wanted: Wanted) -> Built:
    """Build a model of open_clip.

    Args:
        wanted: its name is NAME, with random weights; NAME@TAG, with open_clip's weights of that tag; or
            hf-hub:REPOSITORY or local-dir:FOLDER, with the weights there. Its options are those of
            `open_clip.create_model`.

    Raises:
        CaptureError: open_clip is not installed, has no such model or weights, or cannot reach them or the tokenizer.
    """
    module = _open_clip()
    model, _, tag = wanted.name.partition("@")
    elsewhere = model.startswith(("hf-hub:", "local-dir:"))
    if wanted.pretrained:
        raise CaptureError("the weights of an open_clip model are its tag: NAME@TAG. Leave out --pretrained.")
    instead = f"The weights are the tag: open_clip:{model}@TAG."
    wanted.refuse(pretrained=instead, load_weights=instead, num_classes="A CLIP's classes are its prompts: --prompt.")
    if not elsewhere and model not in module.list_models():
        raise CaptureError(
            f"open_clip has no model {model!r}. open_clip.list_models() has all; hf-hub:REPOSITORY, too."
        )
    tags = [] if elsewhere else module.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise CaptureError(f"open_clip has no weights {tag!r} of {model}; it has {', '.join(tags) or 'none'}.")
    options = {} if wanted.input_size is None else {"force_image_size": wanted.input_size[1:]}
    reachable = not (tag or model.startswith("hf-hub:")) or reach.hub_reachable()
    try:
        with reach.hub(reachable), _quiet():
            clip = module.create_model(
                model, pretrained=tag or None, load_weights=bool(tag) or elsewhere, **{**options, **wanted.options}
            )
    except Exception as error:
        cause = one_line(error) if reachable else "the hub is out of reach, and its cache does not have it"
        other = f" Offline: open_clip:{model} has random weights; or give --checkpoint." if tag else ""
        raise CaptureError(f"{wanted.spec} cannot be had: {cause.rstrip('.')}.{other}") from error
    found = OpenClip(clip, _tokenizer(module, model, wanted.spec)).eval()
    return Built(found, _preprocessing(found), tag or (model if elsewhere else "random"), holder=clip)


def twin_of(name: str, pretrained: bool) -> str:
    """The spec of open_clip's model whose picture tower is a model of timm; "" if there is none.

    Args:
        name: timm's name of the picture tower, with or without a tag.
        pretrained: whether its weights are wanted: those of the tag, or the first that open_clip has.

    Raises:
        CaptureError: open_clip is not installed, or has no weights of that tag.

    Example:
        >>> twin_of("vit_base_patch16_clip_224", False), twin_of("vit_base_patch16_siglip_224", True)
        ('open_clip:ViT-B-16', 'open_clip:ViT-B-16-SigLIP@webli')
        >>> twin_of("vit_base_patch16_clip_224.openai", True), twin_of("resnet18", False)
        ('open_clip:ViT-B-16-quickgelu@openai', '')
    """
    module = _open_clip()
    base, _, tag = name.partition(".")
    plain, quick = base.replace("_quickgelu", ""), "_quickgelu" in base
    # The NLLB models put another text tower beside a SigLIP's pictures.
    models = [m for m in module.list_models() if plain in _towers(module, m) and not m.startswith("nllb")]
    if not pretrained:
        fitting = [model for model in models if model.endswith("-quickgelu") == quick]
        return f"open_clip:{fitting[0]}" if fitting else ""
    known: dict[str, str] = {}  # timm's tag -> open_clip's spec
    for model in models:
        for own in module.list_pretrained_tags_by_model(model):
            called, trained_quick = _tag(module, model, own)
            # Weights trained with the quick GELU need it, whatever timm calls the tower.
            if called not in known or model.endswith("-quickgelu") == trained_quick:
                known[called] = f"open_clip:{model}@{own}"
    alike = [called for called in known if not tag or called.replace("_", "").startswith(tag.replace("_", ""))]
    if known and not alike:
        raise CaptureError(
            f"open_clip has no text tower for timm:{name}; it has weights for timm:{base} with {', '.join(known)}, as "
            f"in timm:{base}.{next(iter(known))}."
        )
    return known[tag if tag in known else alike[0]] if known else ""


def _towers(module: Any, model: str) -> set[str]:
    """What timm calls the picture tower of a model, without tags."""
    homes = {
        module.get_pretrained_cfg(model, tag).get("hf_hub", "") for tag in module.list_pretrained_tags_by_model(model)
    }
    tower = (module.get_model_config(model) or {}).get("vision_cfg", {}).get("timm_model_name", "")
    names = {home.removeprefix("timm/") for home in homes if home.startswith("timm/")} | {tower}
    return {name.partition(".")[0].rstrip("/") for name in names}


def _tag(module: Any, model: str, own: str) -> tuple[str, bool]:
    """What timm calls the weights that open_clip calls `own`, and whether they were trained with the quick GELU."""
    cfg = module.get_pretrained_cfg(model, own)
    home = cfg.get("hf_hub", "").removeprefix("timm/").rstrip("/").partition(".")[2]
    if "SigLIP" in model:
        home = f"{'v2_' * ('SigLIP2' in model)}{own}{'_i18n' * ('i18n' in model)}"
    return (home if home and not cfg["hf_hub"].startswith("laion") else own), bool(cfg.get("quick_gelu"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """During one call, keep open_clip's remarks about weights out of the log: errors and headings say the same."""
    logger = logging.getLogger()
    logger.addFilter(_refuse)
    try:
        yield
    finally:
        logger.removeFilter(_refuse)


def _refuse(record: logging.LogRecord) -> bool:
    return False


def _tokenizer(module: Any, model: str, spec: str) -> Tokenizer:
    """open_clip's tokenizer, made when there are texts; that of some models is on the hub."""

    def made() -> Any:
        try:
            with reach.hub(False), _quiet():
                return module.get_tokenizer(model)
        except Exception as error:
            if reach.hub_reachable():
                return module.get_tokenizer(model)
            raise CaptureError(
                f"the tokenizer of {spec} cannot be had: it is on the hub, which is out of reach, and its cache does "
                "not have it. Run this once where the hub can be reached; a model with open_clip's own tokenizer, such "
                "as open_clip:ViT-B-16, needs none."
            ) from error

    def tokenize(texts: list[str]) -> Tensor:
        ids: Tensor = made()(texts)
        return ids

    return tokenize


def _preprocessing(model: OpenClip) -> Preprocessing:
    """The preprocessing of open_clip's model, as open_clip defines it."""
    transform = _open_clip().transform
    config = transform.PreprocessCfg(**model.clip.visual.preprocess_cfg)
    size = config.size if isinstance(config.size, (tuple, list)) else (config.size, config.size)
    return Preprocessing(
        size=(len(config.mean), *size),
        mean=tuple(config.mean),
        std=tuple(config.std),
        transform=transform.image_transform_v2(config, is_train=False),
        interpolation=config.interpolation,
        crop=None if config.resize_mode == "squash" else 1.0,
    )


def _open_clip() -> Any:
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise CaptureError(f'this needs open_clip ({error}): pip install "fxgrad[clip]"') from error
