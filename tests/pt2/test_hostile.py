"""Damaged and hostile files: one error each, that names what is wrong, and nothing in them is run.

Whoever makes a file can make its digests right, so most of what is hostile here has right ones.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import operator
import pickle
import random
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxgrad
from fxgrad.pt2.vet import is_expression, is_target

MANIFEST, RULES, PROGRAM = "extra/fxgrad/manifest.json", "extra/fxgrad/rules.json", "models/model.json"
EXAMPLE, WEIGHT = "data/sample_inputs/model.pt", "data/weights/weight_0"
CONFIG = "data/weights/model_weights_config.json"
Members = dict[str, bytes]


class Touch:
    """Unpickled, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"open({self.path!r}, 'w').close()",))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.GELU(), nn.Unflatten(1, (2, 2))).eval()
    path = tmp_path_factory.mktemp("artefact") / "m.pt2"
    fxgrad.save(fxgrad.convert(model, (torch.randn(2, 3, 4),)), path)
    return path.read_bytes()


def members_of(artefact: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(artefact)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def forged(members: Members, *, digests: bool = True, names: dict[str, str] | None = None) -> bytes:
    """An archive of these members, with right digests if wanted; `names` are members under whole names of their own."""
    members = dict(members)
    if digests:
        manifest = json.loads(members[MANIFEST])
        manifest["sha256"] = {n: hashlib.sha256(c).hexdigest() for n, c in members.items() if n != MANIFEST}
        members[MANIFEST] = json.dumps(manifest).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr((names or {}).get(name, f"archive/{name}"), content)
    return buffer.getvalue()


def edited(members: Members, member: str, edit: Callable[[Any], object]) -> bytes:
    """The artefact with one JSON member edited in place, and right digests."""
    data = json.loads(members[member])
    edit(data)
    return forged({**members, member: json.dumps(data).encode()})


def nodes(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"]


def _set(path: str, value: Any) -> Callable[[Any], None]:
    """An edit: set what a path of keys leads to."""

    def edit(data: Any) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in way:
            data = data[key]
        data[last] = value

    return edit


def expressions(pwned: str) -> list[str]:
    return [
        f"__import__('os').system('touch {pwned}')",
        f"open('{pwned}', 'w')",
        f"FloorDiv(open('{pwned}', 'w'), Integer(1))",
        f"Symbol('s0', positive=open('{pwned}', 'w'))",
        f"[open('{pwned}', 'w') for _ in (1,)]",
        f"(lambda: open('{pwned}', 'w'))()",
        f"eval(\"open('{pwned}', 'w')\")",
        f"Symbol('s0') if open('{pwned}', 'w') else 1",
        f"Float(\"open('{pwned}', 'w')\")",
        f"Symbol(\"s0'); open('{pwned}', 'w')  #\")",
        "Symbol('s0').__class__.__mro__[-1].__subclasses__()",
        "Integer(9)**Integer(9)**Integer(9)**Integer(9)",
        "Pow(Integer(9), Pow(Integer(9), Integer(999)))",
        "Pow(Integer(9), Integer(99999999999))",
        "Pow(" * 8 + "Integer(9)" + ", Integer(9))" * 8,
        "LShift(Integer(1), Integer(10000000000))",
        "9" * 5000,
        "Add(" * 5000 + "1" + ")" * 5000,
        "'a' * 10000000000",
        "factorial(Integer(99999999))",
    ]


TARGETS = [
    *("os.system", "builtins.eval", "torch.hub.load", "torch.serialization.load", "torch.load", "torch.os.system"),
    *("_operator.attrgetter", "_operator.methodcaller", "math.__loader__.load_module", "#namespace:op"),
    *("torch.ops.load_library.x.y", "torch.ops.aten.from_file.default", "torch.ops.aten.save.default"),
    *(
        "torch.ops.aten.warn.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "torch.ops.prim.Print.x",
    ),
    *("torch.ops.c10d.barrier.default", "torch.ops.aten.add.Tensor\nimport os", "torch.ops.nobody.has.this", ""),
]
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def structures(pwned: str) -> list[Any]:
    enum = {"__enum__": True, "fqn": "antigravity:x", "name": "y"}
    factory = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}
    return [
        [1, {"type": "builtins.dict", "context": json.dumps([enum]), "children_spec": [LEAF]}],
        [1, {"type": "collections.defaultdict", "context": factory, "children_spec": []}],
        [1, {"type": "nobody.Knows", "context": "null", "children_spec": []}],
        [7, LEAF],
        "no tree",
    ]


def programs(pwned: str) -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Edits of the program, each with what a right message says."""
    code = f"x): open({pwned!r}, 'w')\n#"
    graph = "graph_module/graph"
    for text in expressions(pwned):
        yield "for a expr_str, which fxgrad does not run", lambda p, t=text: _expression(p, t)
    for target in TARGETS:
        yield (
            "for a target, which fxgrad does not run|the program calls torch.ops.(nobody|load_library)",
            _set(f"{graph}/nodes/0/target", target),
        )
    for spec in structures(pwned):
        text = json.dumps(spec) if spec != "no tree" else "no tree"
        for side in ("in_spec", "out_spec"):
            path = f"graph_module/module_call_graph/0/signature/{side}"
            yield f"for a {side}, which|which nothing in this process has registered", _set(path, text)
    yield "for a forward_arg_names", _set("graph_module/module_call_graph/0/signature/forward_arg_names", [code])
    yield "for a name", _set(f"{graph}/nodes/0/name", code)
    yield "for a name", _set(f"{graph}/inputs/0/as_tensor/name", code)
    yield "for a name", _set(f"{graph}/inputs/0/as_tensor/name", "torch")
    yield "for a name in tensor_values", lambda p: p["graph_module"]["graph"]["tensor_values"].update({code: {}})
    yield "for a parameter_name", _set("graph_module/signature/input_specs/0/parameter/parameter_name", "a'b")
    yield "an operand", _set(f"{graph}/nodes/0/inputs/0/name", code)
    yield "has a as_operator", _set(f"{graph}/nodes/0/inputs/0/arg", {"as_operator": "torch.hub.load"})
    obj = {"as_custom_obj": {"name": "x", "class_fqn": "__torch__.X"}}
    yield "has a as_custom_obj", _set(f"{graph}/nodes/0/inputs/0/arg", obj)
    yield "for a verifiers", _set("verifiers", ["EXECUTORCH"])
    yield "for a surprise", _set("surprise", code)
    yield "cannot be read", _set(f"{graph}/nodes", 3)
    yield "cannot be read", _set("schema_version", {"major": 99, "minor": 0})
    yield "cannot be read", _set(f"{graph}/outputs", [{"as_tensor": {"name": "nothing"}}])


def _expression(program: Any, text: str) -> None:
    """Put a text where a dynamic size stands."""
    for value in program["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text
                return
    raise AssertionError("no dynamic size")


def hostile_pickles(pwned: str) -> list[bytes]:
    bomb: Any = ()
    for _ in range(60):
        bomb = (bomb, bomb)
    saved = []
    for content in (Touch(pwned), ((Touch(pwned),), {}), ((nn.Linear(1, 1),), {}), (bomb, {})):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        saved.append(buffer.getvalue())
    return [*saved, pickle.dumps(Touch(pwned)), b"no pickle"]


def manifests() -> list[tuple[str, Callable[[Any], object]]]:
    return [
        (r"fxgrad 9\.1 wrote it, in format 2; this is fxgrad .*Install that version or a later one", _newer),
        ("format should be int", _set("format", "1")),
        ("its manifest is none", lambda m: m.pop("format")),
        ("its manifest is none", lambda m: m.pop("twins")),
        ("options should be dict", _set("options", [])),
        ("through_no_grad should be bool", _set("options/through_no_grad", "yes")),
        ("form should be one of flat, checkpointed, unflattened, not 'eval'", _set("options/form", "eval")),
        ("form should be str", _set("options/form", [])),
        ("forward has a parameter 'a b'", _set("forward", [{"name": "a b", "kind": "KEYWORD_ONLY"}])),
        ("do not fit together", _set("forward", [{"name": "a", "kind": "__class__"}])),
        ("twins of the user's own", _set("twins", {"aten.gelu": "os.system"})),
    ]


def _newer(manifest: Any) -> None:
    manifest.update(format=2, fxgrad="9.1")


def tables() -> list[tuple[str, Callable[[Any], object]]]:
    return [
        ("has the kind nonsense, which this fxgrad does not know", _set("rows/aten.gelu/kind", "nonsense")),
        ("RuleTableError.*no overload has the operands", _set("rows/aten.gelu/is", {"carrier": ["path"]})),
        ("RuleTableError.*unknown key 'code'", _set("rows/aten.gelu/is/code", "import os")),
        ("RuleTableError.*must be one of", _set("backward/gated_activation", "os.system")),
        ("lacks a backward", _set("backward", {"linear": "native"})),
        ("is none any more", _set("rows", ["aten.gelu"])),
        ("is none any more", lambda t: t.pop("name")),
        ("which this fxgrad does not know", _set("on_unknown", "ignore")),
        ("gelu.* has no row", lambda t: t["rows"].pop("aten.gelu")),
    ]


Corruption = tuple[str, bytes]


def corruptions(artefact: bytes, pwned: str) -> Iterator[Corruption]:
    """What a right message says, as a pattern, and the file."""
    draw, members = random.Random(0), members_of(artefact)
    with zipfile.ZipFile(io.BytesIO(artefact)) as archive:
        infos = archive.infolist()
    for _ in range(40):
        flipped, info = bytearray(artefact), draw.choice([i for i in infos if i.file_size])
        start = artefact.index(members[info.filename.partition("/")[2]], info.header_offset)
        flipped[start + draw.randrange(info.file_size)] ^= 1 << draw.randrange(8)
        yield r"is damaged or no \.pt2 file \(BadZipFile: Bad CRC-32", bytes(flipped)
    for _ in range(25):
        yield "is damaged or", artefact[: draw.randrange(len(artefact))]
    for _ in range(15):
        a, b = draw.sample([n for n in members if n != MANIFEST and n != "version"], 2)
        if members[a] != members[b]:
            yield (
                "was changed, added or removed since",
                forged({**members, a: members[b], b: members[a]}, digests=False),
            )
    for name in (WEIGHT, CONFIG, RULES, EXAMPLE, PROGRAM):
        yield "was changed, added or removed since", forged({**members, name: members[name] + b" "}, digests=False)
        yield (
            r"was changed, added|no exported program",
            forged({n: c for n, c in members.items() if n != name}, digests=False),
        )
    for name in ("../evil", "/etc/evil", "archive/../../evil", "archive\\..\\evil", "archive/extra/../../../evil"):
        yield (
            "has a name that leads out|one folder",
            forged({**members, "extra/evil": b"x"}, names={"extra/evil": name}),
        )
    for name in ("other/evil", "archive/extra/\u00e9vil"):
        yield "is not in the archive's one folder", forged({**members, "extra/evil": b"x"}, names={"extra/evil": name})
    yield "is there twice", forged({**members, "extra/evil": b"x"}, names={"extra/evil": "archive/Models/model.json"})
    for name in ("data/aotinductor/model/x.so", "data/weights/x.so", "data/aotinductor/model/wrapper.cpp"):
        yield "is compiled code", forged({**members, name: b"\x7fELF"})
    for name in (
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/weights/model.pt",
        "models/evil.json",
        "x",
    ):
        yield "is nothing that belongs into", forged({**members, name: pickle.dumps(Touch(pwned))})
    for content in hostile_pickles(pwned):
        yield "hold more than tensors and plain data|cannot be read", forged({**members, EXAMPLE: content})
    first = json.loads(members[CONFIG])["config"]
    for key in first:
        config = copy.deepcopy(first)
        config[key]["use_pickle"] = True
        weight = f"data/weights/{config[key]['path_name']}"
        pickled = {**members, CONFIG: json.dumps({"config": config}).encode(), weight: pickle.dumps(Touch(pwned))}
        yield "not stored as plain numbers", forged(pickled)
        for size in (10**15, -1, 5000):
            config = copy.deepcopy(first)
            config[key]["tensor_meta"]["sizes"][0] = {"as_int": size}
            yield "cannot be read|do not fit", forged({**members, CONFIG: json.dumps({"config": config}).encode()})
    for content in (b"{}", b"[" * 100_000, b"null", b"\xff\xfe"):
        yield "is not JSON|cannot be read|should be|no models/model.json", forged({**members, PROGRAM: content})
        yield "is not JSON|its manifest is none", forged({**members, MANIFEST: content}, digests=False)
        yield "is not JSON|is none any more", forged({**members, RULES: content})
    for member, edits in ((PROGRAM, programs(pwned)), (MANIFEST, manifests()), (RULES, tables())):
        for message, edit in edits:
            yield message, edited(members, member, edit)
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, "extra/bomb": bytes(10**7)}.items():
            archive.writestr(f"archive/{name}", content)
    yield "say that they are larger than the file", compressed.getvalue()


def test_two_hundred_corruptions(artefact: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pwned, path = tmp_path / "pwned", tmp_path / "m.pt2"
    cases = list(corruptions(artefact, str(pwned)))
    assert len(cases) >= 200
    for message, content in cases:
        path.write_bytes(content)
        begun = time.perf_counter()
        with pytest.raises(fxgrad.FxgradError, match=message) as caught:
            fxgrad.load(path)
        assert "m.pt2" in str(caught.value) or "has no row" in str(caught.value), caught.value
        assert time.perf_counter() - begun < 20, message
        assert not pwned.exists(), message
    assert capfd.readouterr() == ("", ""), "the error says it all"


def test_the_forger_is_not_what_is_refused(artefact: bytes, tmp_path: Path) -> None:
    """Rewritten unchanged it loads, so every refusal above is for what was changed; and a valid edit is just another model."""
    path, members = tmp_path / "m.pt2", members_of(artefact)
    x = torch.randn(3, 3, 4)
    path.write_bytes(artefact)
    wanted = fxgrad.load(path)(x)
    path.write_bytes(forged(members))
    assert torch.equal(fxgrad.load(path)(x), wanted)
    path.write_bytes(edited(members, RULES, _set("backward/gated_activation", "native")))
    assert torch.equal(fxgrad.load(path)(x), wanted)


def test_guards_are_dropped_not_run(artefact: bytes, tmp_path: Path) -> None:
    code = [f"open({str(tmp_path / 'pwned')!r}, 'w')"]
    (tmp_path / "m.pt2").write_bytes(edited(members_of(artefact), PROGRAM, _set("guards_code", code)))
    for module in (fxgrad.load(tmp_path / "m.pt2"), fxgrad.convert(tmp_path / "m.pt2")):
        module(torch.randn(3, 3, 4))
    assert not (tmp_path / "pwned").exists()


def test_convert_reads_files_as_carefully(artefact: bytes, tmp_path: Path) -> None:
    """A file of torch.export.save has no digests, but is vetted like any other."""
    pwned, path, members = tmp_path / "pwned", tmp_path / "m.pt2", members_of(artefact)
    plain = {name: content for name, content in members.items() if not name.startswith("extra/")}
    path.write_bytes(forged(plain, digests=False))
    assert fxgrad.convert(path)(torch.randn(3, 3, 4)).shape == (3, 2, 2)
    for content in hostile_pickles(str(pwned))[:2]:
        path.write_bytes(forged({**plain, EXAMPLE: content}, digests=False))
        with pytest.raises(
            fxgrad.CaptureError, match=r"hold more than tensors.*torch\.export\.load and convert what that"
        ):
            fxgrad.convert(path)
    path.write_bytes(forged({**plain, "data/constants/custom_obj_0": b"x"}, digests=False))
    with pytest.raises(fxgrad.CaptureError, match=r"without pickled objects"):
        fxgrad.convert(path)
    assert not pwned.exists()


def test_sizes_that_torch_writes_are_let_through() -> None:
    sizes = [
        "Symbol('s31', positive=True, integer=True)",
        "Mul(Integer(-2), Symbol('u0', integer=True))",
        "Add(Integer(1), FloorDiv(Add(Symbol('s0', positive=True, integer=True), Integer(-1)), Integer(2)))",
        "Mul(Rational(1, 2), Pow(Symbol('s0'), Integer(2)))",
        "Max(Integer(1), Mod(Symbol('s1'), Integer(3)))",
        "StrictLessThan(Integer(3), Symbol('s0'))",
        "Piecewise(ExprCondPair(Integer(1), Eq(Symbol('s0'), Integer(1))), ExprCondPair(Symbol('s0'), true))",
    ]
    assert all(map(is_expression, sizes)) and not any(map(is_expression, expressions("x")))


def test_every_op_with_a_row_may_be_saved() -> None:
    """The vetting of ops must not be stricter than the rule table."""
    from fxgrad.table.loading import load

    def named(target: str) -> bool:
        """Whether it takes dimensions by name: named tensors, which PyTorch has dropped and never exported."""
        arguments = operator.attrgetter(target.removeprefix("torch."))(torch)._schema.arguments
        return any("str" in str(a.type) and re.fullmatch(r"(\w+_)?dims?\d?|names", a.name) for a in arguments)

    refused = []
    for op in load().rows:
        namespace, _, name = op.partition(".")
        packet = getattr(getattr(torch.ops, namespace), name.partition(".")[0])
        for overload in [name.partition(".")[2]] if "." in name else packet.overloads():
            target = f"torch.ops.{namespace}.{name.partition('.')[0]}.{overload}"
            if not overload.endswith("out") and not named(target) and not is_target(target):
                refused.append(f"{op}.{overload}")
    # These are TorchScript's own, of lists and text; no graph of tensors has them.
    texts = "add.t add.str split.str sort.str sort.any mul.left_t mul.right_".split()  # noqa: SIM905
    assert refused == [f"aten.{name}" for name in texts]
