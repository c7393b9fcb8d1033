"""docs/examples/serve answers with what the explainer gives for the same picture."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fxgrad
from fxgrad.explainer.run import OnnxExplainer

pytest.importorskip("fastapi", reason="the example needs fastapi")
pytest.importorskip("httpx", reason="fastapi's test client needs httpx")
pytest.importorskip("multipart", reason="uploads need python-multipart")
APP = Path(__file__).parents[2] / "docs" / "examples" / "serve" / "app.py"
NAMES = ["tabby, tabby cat", "snow leopard, ounce", "tench"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(128, 3)).eval()
    x = torch.randn(2, 3, 16, 16)
    how = {"size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "crop": 0.9}
    path = tmp_path_factory.mktemp("serve") / "e.onnx"
    fxgrad.export_explainer(
        fxgrad.convert(model, (x,)), (x,), path, metadata={"preprocessing": how, "class_names": NAMES}
    )
    return path


@pytest.fixture
def client(file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("EXPLAINER", str(file))
    spec = importlib.util.spec_from_file_location("served", APP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "served", module)
    spec.loader.exec_module(module)
    return TestClient(module.create_app())


def png(picture: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"picture": ("cat.png", file.getvalue(), "image/png")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_answers_with_the_explainer_s_map(client: Any, file: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8))
    explainer = OnnxExplainer(file, threads=1)
    for target, index in ((None, None), ("ounce", 1), ("0", 0)):
        answer = client.post("/explain", files=png(picture), data={} if target is None else {"target": target})
        assert answer.status_code == 200, answer.text
        found, wanted = answer.json(), explainer.explain(picture, index)
        assert found["target"] == wanted.target and found["name"] == NAMES[wanted.target]
        assert found["policy"] == "libragrad" and found["completeness_error"] < 1e-4
        np.testing.assert_allclose(found["map"], wanted.attribution, rtol=1e-5, atol=1e-6)
        assert found["logit"] == pytest.approx(float(wanted.logits[wanted.target]), rel=1e-5)
    clear = Image.fromarray(np.random.default_rng(1).integers(0, 255, (20, 20, 4), np.uint8), "RGBA")
    found = client.post("/explain", files=png(clear), data={"target": "2"}).json()
    np.testing.assert_allclose(found["map"], explainer.explain(clear, 2).attribution, rtol=1e-5, atol=1e-6)
    drawn = client.post("/explain.png", files=png(picture))
    assert Image.open(io.BytesIO(drawn.content)).size == (16, 16) and drawn.headers["content-type"] == "image/png"
    assert client.get("/classes").json() == NAMES


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_says_what_is_wrong(client: Any) -> None:
    picture = png(Image.new("RGB", (9, 9)))
    answer = client.post("/explain", files=picture, data={"target": "snow leopart"})
    assert answer.status_code == 404 and "no class 'snow leopart'; close to it: snow leopard, ounce" in answer.text
    assert client.post("/explain", files=picture, data={"target": "3"}).status_code == 404
    assert client.post("/explain", files=picture, data={"target": "-1"}).status_code == 404
    answer = client.post("/explain", files={"picture": ("a.txt", b"no", "text/plain")})
    assert answer.status_code == 415 and "a.txt is no picture that Pillow can read" in answer.text
    deep = client.post("/explain", files=png(Image.fromarray(np.full((9, 9), 40000, np.uint16))))
    assert deep.status_code == 415 and "more than 8 bits a channel" in deep.text


def test_it_needs_neither_torch_nor_fxgrad() -> None:
    words = {
        line.split()[1].split(".")[0] for line in APP.read_text().splitlines() if line.startswith(("import ", "from "))
    }
    assert not words & {"torch", "fxgrad"}
