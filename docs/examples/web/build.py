"""Build the pages that explain photos and digits in the browser: `make web`, then serve build/web with any server.

    python docs/examples/web/build.py [OUT]

needs npm, for onnxruntime-web.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import fxgrad
from fxgrad.demo.canvases import canvas
from fxgrad.demo.model import CLASS_NAMES, digits_vit

HERE = Path(__file__).parent
PAGE = (
    *("index.html", "style.css", "app.js", "explainer.js", "pictures.js"),
    *("digits.html", "digits.css", "digits.js"),
)
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PATCH = 6
SHOWN = 12


def build(out: Path) -> None:
    """Write the whole page to the folder `out`: nothing else is loaded, from anywhere.

    Raises:
        subprocess.CalledProcessError: npm cannot install onnxruntime-web.
        FileNotFoundError: there is no npm.
    """
    out.mkdir(parents=True, exist_ok=True)
    installed = out / "node_modules"
    for name in (*PAGE, "package.json", "package-lock.json"):
        shutil.copy(HERE / name, out)
    subprocess.run(["npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--silent"], cwd=out, check=True)
    for name in RUNTIME:
        shutil.copy(installed / "onnxruntime-web" / "dist" / name, out)
    shutil.copy(installed / "onnxruntime-web" / "package.json", out / "onnxruntime-web.json")  # version and licence
    shutil.rmtree(installed)
    model = digits_vit()
    config = model.pretrained_cfg
    x = torch.zeros(2, *config["input_size"])
    libra = fxgrad.convert(model, (x,))
    (mean,), (std,) = config["mean"], config["std"]
    size = list(config["input_size"])
    how = {"size": size, "mean": [mean], "std": [std], "interpolation": "bicubic", "crop": None}
    about = {"model": "the demo's ViT", "preprocessing": how, "class_names": list(CLASS_NAMES)}
    fxgrad.export_explainer(libra, (x,), out / "digits.onnx", pool=PATCH, metadata=about)
    canvases = [canvas(number) for number in range(SHOWN)]
    samples = [
        {"labels": c.labels, "pixels": (c.image * 255).round().astype(np.uint8).ravel().tolist()} for c in canvases
    ]
    described = {"classes": CLASS_NAMES, "mean": mean, "std": std, "canvases": samples}
    (out / "samples.json").write_text(json.dumps(described), "utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/web")
    build(folder)
    print(f"wrote {folder}; now: python -m http.server -d {folder}")
