"""Models of transformers, of pictures above all: from the hub, its cache, a folder, or a config."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxgrad.data import reach
from fxgrad.data.clip import Clip, Tokenizer
from fxgrad.data.hf_pictures import processed
from fxgrad.data.hf_texts import TextLogits, text_model, token_ids
from fxgrad.data.pictures import Preprocessing
from fxgrad.data.resizing import resizing
from fxgrad.data.specs import Built, Wanted
from fxgrad.errors import CaptureError, one_line

_FILES = "Put tokenizer.json and tokenizer_config.json beside config.json, and give that folder: hf:FOLDER."
_TOWERS = ("clip", "siglip")
"""Types with two towers whose texts need no mask: causal ones, or trained with their padding."""


class Logits(nn.Module):
    """A classifier of transformers, from pictures to its logits alone."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (batch, C, H, W) -> logits (batch, classes)."""
        found: Tensor = self.model(pixel_values=image).logits
        return found


class HfClip(Clip):
    """A model of transformers with two towers, such as CLIP and SigLIP."""

    def encode_image(self, image: Tensor) -> Tensor:
        return _pooled(self.clip.get_image_features(pixel_values=image))

    def encode_text(self, ids: Tensor) -> Tensor:
        return _pooled(self.clip.get_text_features(input_ids=ids))


def hf_model(wanted: Wanted) -> Built:
    """Build a model of transformers.

    Args:
        wanted: its name is a repository on the hub or in its cache, or a folder, with a config.json; or a type of
            model, such as vit, with the type's default config. Weights are random, or with `pretrained` those in the
            repository or folder. Its options change the config; `num_classes` is the number of labels.

    Returns:
        The model. With two towers it gives embeddings of pictures, and is to be prompted. Its preprocessing is that of
        the repository or folder; without one, pictures are resized to the model's size, mean and deviation 0.5. A
        language model has `TokenIds` instead.

    Raises:
        CaptureError: transformers is not installed, or has no such model; it is neither of pictures nor of texts; it
            cannot be built; or its weights cannot be had.
    """
    transformers = _transformers()
    place = _Place(transformers, wanted.name)
    config = place.config(transformers, wanted)
    headed = any("ForImageClassification" in name for name in config.architectures or ())
    two = config.model_type in _TOWERS and not headed
    pictures = two or type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    auto = transformers.AutoModel if two else transformers.AutoModelForImageClassification
    if not pictures:
        auto = text_model(transformers, config, "num_classes" in wanted.options)
        config.use_cache = False
    if auto is None:
        raise CaptureError(
            f"{wanted.spec}: transformers has no classifier of pictures and no language model of the type "
            f"{config.model_type}. fxgrad.convert takes any model, in Python."
        )
    with _quiet(transformers):
        model, weights = _model(place, auto, config, wanted)
    if not pictures:
        return Built(TextLogits(model), token_ids(config), weights, holder=model)
    preprocess = place.preprocessing(transformers, wanted, config)
    if two:
        clip = HfClip(model, place.tokenizer(transformers, wanted, config)).eval()
        return Built(clip, preprocess, weights, holder=model)
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    names = None if labels == [f"LABEL_{i}" for i in range(len(labels))] else tuple(labels)
    return Built(Logits(model, config.num_labels), preprocess, weights, names, holder=model)


def hf_language_model(wanted: Wanted, texts: Sequence[str], pictures: bool = False) -> tuple[nn.Module, Any, str]:
    """A language model of transformers, as its config names it, and its tokenizer.

    Args:
        wanted: as for `hf_model`; a folder or repository, which has a tokenizer.
        texts: of which the tokenizer is to know words.
        pictures: whether it gets pictures, too.

    Returns:
        (the model, the tokenizer, or with pictures the processor, where the weights come from).

    Raises:
        CaptureError: as for `hf_model`, or there is no tokenizer, or no processor of pictures.
    """
    transformers = _transformers()
    place = _Place(transformers, wanted.name)
    config = place.config(transformers, wanted)
    tokenizer = place.words(transformers, wanted, texts)
    tokenizer = place.processor(transformers, wanted) if pictures else tokenizer
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    auto = next((one for one in named if one is not None), None) or text_model(transformers, config, False)
    if auto is None:
        raise CaptureError(f"{wanted.spec}: transformers has no language model of the type {config.model_type}.")
    with _quiet(transformers):
        model, weights = _model(place, auto, config, wanted)
    return model, tokenizer, weights


class _Place:
    """Where a model's files are: a folder, the hub or its cache; or nowhere, for a type of model."""

    def __init__(self, transformers: Any, name: str) -> None:
        self.name = name
        self.folder = Path(name).is_dir()
        self.type = not self.folder and name in transformers.CONFIG_MAPPING
        self.reachable = self.folder or self.type or reach.hub_reachable()

    def read(self, read: Any, **options: Any) -> Any:
        """What a `from_pretrained` of transformers reads here."""
        return read(self.name, local_files_only=not self.reachable or self.folder, **options)

    def config(self, transformers: Any, wanted: Wanted) -> Any:
        options = dict(wanted.without("num_classes").options)
        if "num_classes" in wanted.options:
            options["num_labels"] = wanted.options["num_classes"]
        if wanted.input_size is not None:
            sides = wanted.input_size[1:]
            options["image_size"] = sides[0] if sides[0] == sides[1] else list(sides)
            options["num_channels"] = wanted.input_size[0]
        try:
            if self.type:
                config = transformers.AutoConfig.for_model(self.name, **options)
            else:
                config = self.read(transformers.AutoConfig.from_pretrained, **options)
        except Exception as error:
            raise CaptureError(self.missing(wanted, error)) from error
        plain = type(config)()  # a config takes any name
        unknown = [name for name in wanted.options if name != "num_classes" and not hasattr(plain, name)]
        if unknown:
            close = difflib.get_close_matches(unknown[0], plain.to_dict(), 3)
            near = f" Close to it: {', '.join(close)}." if close else ""
            raise CaptureError(f"{wanted.spec}: a config of {config.model_type} has no {unknown[0]!r}.{near}")
        return config

    def missing(self, wanted: Wanted, error: Exception) -> str:
        if self.type:
            return f"{wanted.spec} is no type of model with these options ({one_line(error)})."
        cause = one_line(error) if self.reachable else "which is out of reach, and its cache does not have it"
        where = "read from the folder" if self.folder else "had from the hub"
        return (
            f"{wanted.spec} cannot be {where} ({cause}). Offline: give a folder that has config.json and weights, "
            "hf:FOLDER, or a type of model for random weights, as in hf:vit."
        )

    def tokenizer(self, transformers: Any, wanted: Wanted, config: Any) -> Tokenizer:
        """The tokenizer, which pads to the text tower's own length; it is read when there are texts."""

        def tokenize(texts: list[str]) -> Tensor:
            found = self.words(transformers, wanted, texts)
            longest = config.text_config.max_position_embeddings
            ids = found(texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt").input_ids
            return torch.as_tensor(ids)

        return tokenize

    def words(self, transformers: Any, wanted: Wanted, texts: Sequence[str]) -> Any:
        """The tokenizer as it is, which knows words of these texts."""
        if self.type:
            raise CaptureError(
                f"{wanted.spec} has no tokenizer: its folder or repository has. Give one of them, with or without "
                "--pretrained, such as hf:openai/clip-vit-base-patch32."
            )
        try:
            found = self.read(transformers.AutoTokenizer.from_pretrained)
        except Exception as error:
            cause = one_line(error) if self.reachable else "the hub is out of reach, and its cache does not have it"
            raise CaptureError(f"the tokenizer of {wanted.spec} cannot be had ({cause}). {_FILES}") from error
        for text in texts:
            known = found(text, add_special_tokens=False).input_ids
            if set(known) <= {found.unk_token_id}:  # without files, transformers makes a tokenizer of no words
                raise CaptureError(f"the tokenizer of {wanted.spec} knows no word of {text!r}. {_FILES}")
        return found

    def processor(self, transformers: Any, wanted: Wanted) -> Any:
        """What makes a model's inputs of texts and pictures."""
        try:
            found = self.read(transformers.AutoProcessor.from_pretrained)
        except Exception as error:
            raise CaptureError(f"the processor of {wanted.spec} cannot be had ({one_line(error)}). {_FILES}") from error
        if not hasattr(found, "image_processor"):
            raise CaptureError(f"{wanted.spec} takes no pictures beside a text. Leave them out.")
        return found

    def preprocessing(self, transformers: Any, wanted: Wanted, config: Any) -> Preprocessing:
        own = getattr(config, "vision_config", config)
        side, channels = getattr(own, "image_size", None), getattr(own, "num_channels", 3)
        size = wanted.input_size or (side and (channels, *((side, side) if isinstance(side, int) else side)))
        try:
            if self.type:
                raise OSError("no files")
            processor = self.read(transformers.AutoImageProcessor.from_pretrained)
        except (OSError, ValueError, ImportError):
            if not size:
                raise CaptureError(f"{wanted.spec} does not say how large its input is: --input-size C H W.") from None
            half = (0.5,) * size[0]
            return resizing(size, half, half)
        return processed(processor, size, channels)


def _model(place: _Place, auto: Any, config: Any, wanted: Wanted) -> tuple[nn.Module, str]:
    """(model, where its weights come from)."""
    if wanted.pretrained and place.type:
        raise CaptureError(
            f"{wanted.spec} is a type of model and has no weights. Give hf:OWNER/NAME, or leave out --pretrained."
        )
    try:
        if not wanted.pretrained:
            make = getattr(auto, "from_config", auto)
            return make(config), "random"
        return place.read(auto.from_pretrained, config=config), "pretrained"
    except Exception as error:
        if wanted.pretrained:
            raise CaptureError(place.missing(wanted, error)) from error
        raise CaptureError(f"{wanted.spec} cannot be built: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """During one call, keep transformers' own progress bars away."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _pooled(features: Any) -> Tensor:
    """The embeddings among what `get_image_features` gives: these themselves, before transformers 5."""
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return found


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise CaptureError(f"this needs transformers ({error}): pip install transformers") from error
