"""What is saved comes back bit for bit: in this process, in a fresh one, in workers; on another device and dtype."""

from __future__ import annotations

import copy
import functools
import gc
import json
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxgrad
from bench.tables.saved import build, saves_and_loads
from fxgrad.data.models import randomize
from tests.helpers.save_workers import Samples, write
from tests.helpers.sharing import converted

ROOT = Path(__file__).parents[2]


class Structured(nn.Module):
    """Tied weights, transient and unused state, keywords, constants made while running, outputs of many sorts."""

    offset: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.unused = nn.Parameter(torch.zeros(2))
        self.slice = nn.Parameter(torch.randn(9, 4)[3:5])
        self.register_buffer("offset", torch.randn(4), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))

    def forward(self, x: Tensor, scale: Tensor | None = None, *, flip: bool = False) -> dict[str, object]:
        h = (
            torch.tanh(self.a(x))
            + self.offset
            + torch.arange(4, device=x.device)
            + torch.tensor([1.5], device=x.device)
        )
        h = h * self.mask * self.slice.sum(0)
        if scale is not None:
            h = h * scale
        if flip:
            h = h.flip(-1)
        return {"out": self.b(h), "rest": [(h, self.mask), OrderedDict(last=h.sum(-1))], "none": None}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.layer(x, src_key_padding_mask=~keep)[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0].sum(1)


def blocks(n: int = 3) -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4)) for _ in range(n))).eval()


def channels_last() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    return net.to(memory_format=torch.channels_last).eval()


def randomized(model: nn.Module) -> nn.Module:
    randomize(model)
    return model.eval()


IMAGE = (torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32),)
X = torch.linspace(-1, 1, 8).reshape(2, 4)
CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "structured": lambda: (Structured().eval(), (X, X[:, :1].abs()), {"flip": True}),
    "keywords": lambda: (Structured().eval(), (), {"x": X}),
    "tokens": lambda: (Tokens().eval(), (torch.randint(20, (2, 6)), torch.ones(2, 6, dtype=torch.bool)), {}),
    "recurrent": lambda: (Recurrent().eval(), (torch.randn(2, 5, 4),), {}),
    "channels_last": lambda: (channels_last(), (torch.randn(2, 3, 8, 8),), {}),
    "bfloat16": lambda: (blocks().to(torch.bfloat16), (X.to(torch.bfloat16),), {}),
    "bert": functools.partial(build, "BERT"),
    "swin": lambda: (
        randomized(SwinTransformer(32, 2, 3, 5, depths=(2,), num_heads=(2,), embed_dim=16, window_size=4)),
        IMAGE,
        {},
    ),
    "eva": lambda: (
        randomized(Eva(32, 8, 3, 5, embed_dim=16, depth=1, num_heads=2, swiglu_mlp=True, use_rot_pos_emb=True)),
        IMAGE,
        {},
    ),
}


def structured() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    return Structured().eval(), (X,)


@pytest.fixture
def libra() -> fxgrad.ConvertedModule:
    return converted(structured)[2]


def same(ours: fxgrad.ConvertedModule, theirs: fxgrad.ConvertedModule, x: Tensor = X) -> bool:
    """Whether outputs and gradients are equal, bit for bit."""
    results = []
    for libra in (ours, theirs):
        leaf = x.detach().requires_grad_()
        y = libra(leaf)["out"] if "a" in libra._modules else libra(leaf)
        results.append((y, torch.autograd.grad(y.sum(), leaf)[0]))
    return all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("name", CASES)
def test_loaded_is_the_same_bit_for_bit(name: str) -> None:
    """At the example's batch and another: outputs, gradients of inputs, tokens and parameters, the plain program."""
    model, args, kwargs = CASES[name]()
    row = saves_and_loads(model, args, kwargs)
    assert row.identical, row


def test_all_that_belongs_to_it_survives(libra: fxgrad.ConvertedModule, tmp_path: Path) -> None:
    libra.a.bias.requires_grad_(False)  # type: ignore[union-attr]
    with torch.no_grad():
        libra.unused += 3  # what is saved are the present tensors, used or not
    fxgrad.save(libra, tmp_path / "m.pt2")
    loaded = fxgrad.load(str(tmp_path / "m.pt2"))
    assert list(loaded.state_dict()) == list(libra.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), libra.state_dict().values()))
    assert [(n, b.dtype) for n, b in loaded.named_buffers()] == [(n, b.dtype) for n, b in libra.named_buffers()]
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in libra.parameters()]
    assert loaded.a.weight is loaded.b.weight  # type: ignore[union-attr]
    assert loaded.report.to_json() == libra.report.to_json() and "test_save.py:" in loaded.report[0].source_line
    assert loaded(x=X).keys() == libra(X).keys() and fxgrad.check(loaded).passed
    with pytest.raises(fxgrad.InputError, match=r"captured with the inputs \(x\), these are \(x, scale\)"):
        loaded(X, scale=X)
    with pytest.raises(fxgrad.InputError, match=r"does not take these inputs: missing a required argument: 'x'"):
        loaded()
    assert same(loaded.under("gradient"), libra.under("gradient"))
    fxgrad.save(loaded, tmp_path / "again.pt2")
    assert same(fxgrad.load(tmp_path / "again.pt2"), libra)


def test_the_file_says_what_it_is(libra: fxgrad.ConvertedModule, tmp_path: Path) -> None:
    fxgrad.save(libra.under("attnlrp"), tmp_path / "m.pt2")
    extra = {"fxgrad/manifest.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    manifest = json.loads(extra["fxgrad/manifest.json"])
    assert manifest["format"] == 1 and manifest["torch"] == torch.__version__ and manifest["policy"] == "attnlrp"
    assert manifest["inputs"] == [{"name": "x", "shape": [None, 4], "dtype": "float32", "attributed": True}]
    assert manifest["outputs"] == [
        *(
            "output['out']",
            "output['rest'][0][0]",
            "output['rest'][0][1]",
            "output['rest'][1]['last']",
            "output['none']",
        )
    ]
    assert manifest["options"] == {"through_no_grad": False, "on_unknown": "error", "form": "flat"}
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        members = {name.partition("/")[2] for name in archive.namelist()}
    assert set(manifest["sha256"]) == members - {"extra/fxgrad/manifest.json"}
    first = (tmp_path / "m.pt2").read_bytes()
    fxgrad.save(libra.under("attnlrp"), tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_bytes() == first, "equal modules are equal files"
    assert len(first) < 200_000, "a slice of a larger tensor does not bring that along"


def test_through_no_grad_and_checkpointed(tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.blocks = nn.Linear(4, 4), blocks()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.frozen(x)
            return self.blocks(y * x)

    for through in (False, True):
        libra = fxgrad.convert(Half().eval(), (X,), through_no_grad=through).checkpointed()
        fxgrad.save(libra, tmp_path / "half.pt2")
        loaded = fxgrad.load(tmp_path / "half.pt2")
        assert loaded.form == "checkpointed"
        x = torch.randn(3, 4, requires_grad=True)
        assert torch.equal(*(torch.autograd.grad(f(x).sum(), x)[0] for f in (loaded, libra)))


FRESH = """
import sys, torch
{imports}
x, wanted = torch.load({folder!r} + "/wanted.pt")
got = {load}
assert torch.equal(got(x)["out"] if isinstance(got(x), dict) else got(x)[0], wanted)
assert ("fxgrad" in sys.modules) is {ours}
assert "test_save" not in sys.modules
"""


@pytest.mark.parametrize("ours", [True, False])
def test_in_a_fresh_process(libra: fxgrad.ConvertedModule, tmp_path: Path, ours: bool) -> None:
    """Where nobody knows the model's class: with fxgrad the converted module, without it the plain program."""
    fxgrad.save(libra, tmp_path / "m.pt2")
    torch.save((X, libra(X)["out"].detach()), tmp_path / "wanted.pt")
    load = (
        f"fxgrad.load({str(tmp_path / 'm.pt2')!r})"
        if ours
        else f"torch.export.load({str(tmp_path)!r} + '/m.pt2').module()"
    )
    script = FRESH.format(imports="import fxgrad" if ours else "", folder=str(tmp_path), load=load, ours=ours)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_output_types_that_need_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, args, kwargs = build("BERT")
    libra = fxgrad.convert(model, args, kwargs)
    fxgrad.save(libra, tmp_path / "bert.pt2")
    assert type(fxgrad.load(tmp_path / "bert.pt2")(**kwargs)).__name__ == "SequenceClassifierOutput"
    name = "transformers.modeling_outputs.SequenceClassifierOutput"
    monkeypatch.delitem(torch.utils._pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE, name)  # as where nobody imported it
    with pytest.raises(
        fxgrad.ArtefactError,
        match=r"of the type transformers\.modeling_outputs\.SequenceClassifierOutput, which nothing in this process has "
        r"registered\. Import the module that defines it \(transformers\.modeling_outputs\) before loading\.",
    ):
        fxgrad.load(tmp_path / "bert.pt2")


@torch.library.custom_op("fxgradsave::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x / 2


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def halved(x: Tensor) -> Tensor:
    return x / 2


class Halve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(halve(x * self.weight))


@pytest.fixture
def custom(tmp_path: Path) -> fxgrad.ConvertedModule:
    (tmp_path / "mine.toml").write_text('[composed]\n"fxgradsave.halve" = { carrier = "x" }\n')
    return fxgrad.convert(
        Halve().eval(), (X,), rules=["libragrad", str(tmp_path / "mine.toml"), {"fxgradsave.halve": halved}]
    )


def test_twins_of_ones_own_are_given_again(custom: fxgrad.ConvertedModule, tmp_path: Path) -> None:
    fxgrad.save(custom, tmp_path / "m.pt2")
    (tmp_path / "mine.toml").unlink()  # rows are in the file
    loaded = fxgrad.load(tmp_path / "m.pt2", twins={"fxgradsave.halve": halved})
    assert same(loaded, custom) and loaded.classified.table == custom.classified.table
    with pytest.raises(
        fxgrad.ArtefactError,
        match=r"twins .*for fxgradsave\.halve \(was .*halved\).*twins=\{\"fxgradsave\.halve\": function\}",
    ):
        fxgrad.load(tmp_path / "m.pt2")
    with pytest.raises(
        fxgrad.ArtefactError, match=r"twins are given for aten\.glu, but the model was converted without"
    ):
        fxgrad.load(tmp_path / "m.pt2", twins={"fxgradsave.halve": halved, "aten.glu": halved})
    assert same(pickle.loads(pickle.dumps(custom)), custom), "pickle takes the function along by its name"


def test_errors_of_load(libra: fxgrad.ConvertedModule, tmp_path: Path) -> None:
    with pytest.raises(fxgrad.ArtefactError, match=r"none\.pt2 cannot be read: No such file or directory\."):
        fxgrad.load(tmp_path / "none.pt2")
    with pytest.raises(fxgrad.ArtefactError, match=r"cannot be read: Is a directory\."):
        fxgrad.load(tmp_path)
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(fxgrad.ArtefactError, match=r"text\.pt2 is damaged or no \.pt2 file \(BadZipFile"):
        fxgrad.load(tmp_path / "text.pt2")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("archive/version", "3")
    with pytest.raises(fxgrad.ArtefactError, match=r"other\.pt2 is a zip archive, but no exported program"):
        fxgrad.load(tmp_path / "other.pt2")
    torch.export.save(torch.export.export(nn.ReLU(), (X,)), tmp_path / "plain.pt2")
    with pytest.raises(
        fxgrad.ArtefactError, match=r"plain\.pt2 has no manifest, so fxgrad\.save did not write it.*fxgrad\.convert"
    ):
        fxgrad.load(tmp_path / "plain.pt2")
    fxgrad.save(libra, tmp_path / "m.pt2")
    assert fxgrad.convert(tmp_path / "m.pt2", rules="gradient").classified.table.name == "gradient"


class Strange(dict):  # type: ignore[type-arg]
    pass


def test_errors_of_save(libra: fxgrad.ConvertedModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves the old file as it was, and nothing beside it."""
    path = tmp_path / "m.pt2"
    path.write_text("old")
    with pytest.raises(
        fxgrad.ArtefactError, match=r"fxgrad\.save takes what fxgrad\.convert returned, not a Structured"
    ):
        fxgrad.save(Structured(), path)  # type: ignore[arg-type]
    with pytest.raises(fxgrad.ArtefactError, match=r"on the device meta, where tensors have no values"):
        fxgrad.save(copy.deepcopy(libra).to("meta"), path)
    with pytest.raises(fxgrad.ArtefactError, match=r"cannot be written: No such file or directory"):
        fxgrad.save(libra, tmp_path / "none" / "m.pt2")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(fxgrad.ArtefactError, match=r"No space left on device"):
        patched.setattr(os, "fsync", full)
        fxgrad.save(libra, path)

    torch.utils._pytree.register_pytree_node(
        Strange, lambda d: (list(d.values()), list(d)), lambda v, k: Strange(zip(k, v))
    )

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Strange:
            return Strange(a=x.tanh())

    strange = fxgrad.convert(Odd().eval(), (X,))
    with pytest.raises(fxgrad.ArtefactError, match=r"cannot be saved, for torch\.export cannot write it: .*Strange"):
        fxgrad.save(strange, path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_workers(libra: fxgrad.ConvertedModule, start: str) -> None:
    """A fork of a process that has differentiated cannot do so itself: that is PyTorch's limit."""
    samples = Samples(libra, attributes=start == "spawn")
    loaded = list(DataLoader(samples, batch_size=None, num_workers=1, multiprocessing_context=start))
    assert all(torch.equal(ours, samples[i]) for i, ours in enumerate(loaded))


def test_processes_share_the_tensors(libra: fxgrad.ConvertedModule) -> None:
    libra.share_memory()
    process = torch.multiprocessing.get_context("spawn").Process(target=write, args=(libra,))
    process.start()
    process.join()
    assert process.exitcode == 0 and libra.unused.tolist() == [7, 7]


def test_pickles_hold_no_code(libra: fxgrad.ConvertedModule) -> None:
    data = pickle.dumps(nn.Sequential(nn.Identity(), libra))
    assert b"GraphModule" not in data and b"fx.graph" not in data and b"from_pieces" in data
    copied = pickle.loads(data)[1]
    assert same(copied, libra) and copied.a.weight is copied.b.weight
    assert copied.a.weight.data_ptr() != libra.a.weight.data_ptr()  # type: ignore[union-attr]


def test_deepcopy_and_state_dict(libra: fxgrad.ConvertedModule) -> None:
    twin = copy.deepcopy(libra)
    assert same(twin, libra) and twin.a.weight is twin.b.weight  # type: ignore[union-attr]
    other = fxgrad.convert(Structured().eval(), (X,))
    other.load_state_dict(libra.state_dict())
    other.offset = libra.offset
    assert same(other, libra)


def test_constants_follow_to_another_device(libra: fxgrad.ConvertedModule, tmp_path: Path) -> None:
    """meta stands for a second device: an op with operands on two of them fails there as anywhere."""
    tokens = fxgrad.convert(*CASES["tokens"]()[:2])
    for module, args in ((libra, (X,)), (libra.under("gradient"), (X,)), (tokens, CASES["tokens"]()[1])):
        there = copy.deepcopy(module).to("meta")
        outputs = there(*(x.to("meta") for x in args))
        assert {v.device.type for v in torch.utils._pytree.tree_leaves(outputs) if v is not None} == {"meta"}
        assert {v.device.type for v in there.embed(*(x.to("meta") for x in args)).values()} <= {"meta"}
        again = there.under("gradient").to_empty(device="cpu")
        again.load_state_dict(module.state_dict())
        for name, buffer in module.named_buffers():
            again.get_buffer(name).copy_(buffer)
        with torch.no_grad():
            ours, theirs = (torch.utils._pytree.tree_leaves(f(*args)) for f in (again, module))
        assert all(a is b or torch.equal(a, b) for a, b in zip(ours, theirs))


def test_recomputing_modules_follow_too() -> None:
    class Ramp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks()

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x + torch.arange(4, device=x.device))

    libra = fxgrad.convert(Ramp().eval(), (X,))
    there = libra.checkpointed().to("meta")
    assert there.form == "checkpointed" and there(X.to("meta")).device.type == "meta"
    hooked, seen = libra.unflattened(), []
    hooked.get_submodule("blocks.0").register_forward_hook(lambda *call: seen.append(call[-1]))
    hooked(X)
    assert hooked.to("meta")(X.to("meta")).device.type == "meta" and hooked.form == "unflattened"
    assert [value.device.type for value in seen] == ["cpu", "meta"], "hooks stay where they are"


def test_saved_unflattened(libra: fxgrad.ConvertedModule, tmp_path: Path) -> None:
    fxgrad.save(libra.unflattened(), tmp_path / "m.pt2")
    loaded = fxgrad.load(tmp_path / "m.pt2")
    assert loaded.form == "unflattened" and same(loaded, libra, X)


def test_saved_after_a_cast(libra: fxgrad.ConvertedModule, tmp_path: Path) -> None:
    fxgrad.save(libra.double(), tmp_path / "m.pt2")
    loaded = fxgrad.load(tmp_path / "m.pt2")
    assert loaded.a.weight.dtype is torch.float64 and same(loaded, libra, X.double())  # type: ignore[union-attr]


def test_no_second_set_of_tensors() -> None:
    """What the module was captured from is free as soon as the module has tensors of its own."""
    model = nn.Sequential(nn.Linear(1234, 5), nn.GELU()).eval()
    libra = fxgrad.convert(model, (torch.zeros(2, 1234),)).double()
    del model
    gc.collect()
    left = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.shape == (5, 1234)]
    assert [t.dtype for t in left] == [torch.float64] and left[0] is libra.get_parameter("0.weight")


def test_reading_a_file_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    libra = fxgrad.convert(nn.Linear(4, 2).eval(), (torch.randn(3, 4),))
    fxgrad.save(libra, tmp_path / "libra.pt2")
    logger = logging.getLogger("torch")
    logger.addHandler(caplog.handler)
    try:
        fxgrad.load(tmp_path / "libra.pt2")
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
