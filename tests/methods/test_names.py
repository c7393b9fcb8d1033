"""Classes by word: what a wrong name offers."""

from __future__ import annotations

import pytest
from timm.data import ImageNetInfo

from fxgrad.errors import InputError
from fxgrad.methods.names import resolve

IMAGENET = ImageNetInfo().label_descriptions()


@pytest.mark.parametrize(
    ("word", "offered"),
    [
        ("cat", "tabby cat; tiger cat; persian cat; siamese cat; egyptian cat; madagascar cat; bear cat. "),
        ("Great Shark", "great white shark. "),
        ("terrier", "wire-haired fox terrier; and 12 more. "),
        ("goldfsh", "goldfish; goldfinch; globefish. "),
        ("tabby kat", "tabby cat; tabby; tabby, tabby cat. "),
        ("?!", "none. "),
    ],
)
def test_a_word_offers_the_classes_that_have_it(word: str, offered: str) -> None:
    with pytest.raises(InputError) as raised:
        resolve(word, 1000, IMAGENET)
    message = str(raised.value)
    assert message.startswith(f"no class {word!r}. Close to it: ") and f"{offered}Numbers go from 0 to 999" in message


def test_what_is_offered_is_taken() -> None:
    for name in ("tabby cat", "tiger cat", "Persian cat", "madagascar cat"):
        assert name.lower() in IMAGENET[resolve(name, 1000, IMAGENET)].lower()
