"""Whatever is passed to a public function: it ends in a right result or in an FxgradError.

Hypothesis draws a user's model, inputs, a target, a method and a policy from random_calls.py. What is right is known
from plain PyTorch: the model itself, autograd on the rewritten program, the same example alone. Two dozen models with
four calls each, always the same ones, are tried by default; for more, and other ones:

    FXGRAD_FUZZ_EXAMPLES=2000 FXGRAD_FUZZ_SEED=7 pytest tests/test_fuzz_public.py -s
"""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import note
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxgrad
from fxgrad.methods import METHODS
from fxgrad.methods.definition import method_of
from tests.helpers.random_calls import BALANCED, FITTING, MUST_FAIL, TARGETS, Call, calls, logits
from tests.helpers.sampling import sample

EXAMPLES = int(os.environ.get("FXGRAD_FUZZ_EXAMPLES", 24))
LONGEST = 1200
"""Characters of a message: one screen."""
BAR = 1e-10
"""Of the largest share, in float64, between a batch and its examples one by one."""
COMPLETE = 1e-9
SHARES = {name for name, function in METHODS.items() if method_of(function).shares}
RANDOM = {"random", "smoothgrad", "rise", "kernel_shap"}
"""Methods that draw one noise for the whole batch."""
COUNTS: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _counted() -> Iterator[None]:
    yield
    refused = ", ".join(f"{n} {k[8:]}" for k, n in sorted(COUNTS.items()) if k.startswith("refused "))
    counts = f"{COUNTS['examples']} examples, {COUNTS['converted']} converted, refused: {refused or 'none'}"
    print(f"\nfuzzed public functions: {counts}, {COUNTS['violations']} violations")


class Violation(AssertionError):
    """A public function ended otherwise than in a right result or an FxgradError."""


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function's result, or the FxgradError that it raised; anything else it raises is a violation."""
    name = getattr(function, "__name__", type(function).__name__)
    state, graded = torch.get_rng_state(), torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = function(*args, **kwargs)
    except fxgrad.FxgradError as error:
        require(len(str(error)) <= LONGEST, f"{name}: a message of {len(str(error))} characters:\n{error}")
        require("Traceback" not in str(error), f"{name}: a traceback in the message:\n{error}")
        COUNTS[f"refused {type(error).__name__}"] += 1
        found = error
    except Exception as error:
        raise Violation(f"{name} ended in {type(error).__name__}: {error}") from error
    require(torch.equal(state, torch.get_rng_state()), f"{name} changed the state of the random generator")
    require(graded == torch.is_grad_enabled(), f"{name} changed whether gradients are on")
    return found


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def close(ours: Tensor, theirs: Tensor, bar: float, what: str, scale: float = 0.0) -> None:
    require(ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)} for {tuple(theirs.shape)}")
    if theirs.numel() and theirs.isfinite().all():
        error = float((ours - theirs).abs().max())
        require(error <= bar * max(scale, float(theirs.abs().max())) + 1e-300, f"{what}: off by {error:.3g}")


def same(ours: Any, theirs: Any, what: str) -> None:
    """Outputs with the same structure and bits."""
    require(pytree.tree_structure(ours) == pytree.tree_structure(theirs), f"{what}: another structure")
    for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs)):
        if isinstance(b, Tensor):
            require(a.dtype == b.dtype and a.shape == b.shape, f"{what}: outputs of another form")
            require(b.is_meta or bool(((a == b) | ((a != a) & (b != b))).all()), f"{what}: other outputs")


def attempt(calls: list[Call]) -> None:
    """Make calls of one model, and assert that all that they do is right or refused."""
    COUNTS["examples"] += 1
    try:
        libra = converted(calls[0])
        if libra is not None:
            for call in calls:
                called(call, libra)
            args, kwargs = calls[0].arguments(calls[0].inputs)
            fits = taken(libra, args, kwargs)
            ACTIONS[calls[0].action](calls[0], libra, calls[0].model.model, args, kwargs, fits)
    except Violation:
        COUNTS["violations"] += 1
        raise


def converted(call: Call) -> fxgrad.ConvertedModule | None:
    """The converted model; None if it is refused. The model stays as it was."""
    model = call.model.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args, kwargs = call.arguments(call.converted)
    libra = outcome(fxgrad.convert, model, args, kwargs, rules=call.policy)
    after = model.state_dict()
    require(all(torch.equal(after[name], tensor) for name, tensor in before.items()), "convert changed the model")
    if isinstance(libra, fxgrad.FxgradError):
        return None
    COUNTS["converted"] += 1
    return libra


def called(call: Call, libra: fxgrad.ConvertedModule) -> None:
    args, kwargs = call.arguments(call.inputs)
    attributed(call, libra, args, kwargs, forward(call, libra, args, kwargs))


def taken(libra: nn.Module, args: Any, kwargs: dict[str, Any]) -> bool:
    return not isinstance(outcome(run, libra, args, kwargs), fxgrad.FxgradError)


def ran(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the model returns, or the exception that it raises."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model(*whole(args), **kwargs)
    except Exception as error:
        return error


def forward(call: Call, libra: nn.Module, args: Any, kwargs: dict[str, Any]) -> bool:
    """The same bits as the model's; whether the inputs were taken."""
    torch.backends.mha.set_fastpath_enabled(False)
    theirs, ours = ran(call.model.model, args, kwargs), outcome(run, libra, args, kwargs)
    if isinstance(ours, fxgrad.FxgradError):
        fine = call.inputs in ("example", "strided", "wants gradient")
        fine &= call.converted == "example" and not isinstance(theirs, Exception)
        require(not fine, f"inputs like the example are refused: {ours}")
        return False
    require(not isinstance(theirs, Exception), f"the model raises {theirs!r} where the converted one returns")
    same(ours, theirs, "forward")
    return True


def run(libra: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return libra(*whole(args), **kwargs)


def whole(args: Any) -> tuple[Any, ...]:
    """The positional arguments; fxgrad takes a bare tensor for the only one."""
    return args if isinstance(args, tuple) else (args,)


def finite(outputs: Any) -> bool:
    tensors = [v for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor)]
    return all(not v.is_meta and bool(v.isfinite().all()) for v in tensors)


def maps_of(found: fxgrad.Attribution) -> dict[str, Tensor]:
    return dict(getattr(found, "maps", None) or {found.anatomy.input: found.map})


def attributed(call: Call, libra: fxgrad.ConvertedModule, args: Any, kwargs: dict[str, Any], fits: bool) -> None:
    batch = examples_in(call, args, libra if fits else None, kwargs)
    target, own = TARGETS[call.target](batch, slice(None))
    given = call.given()
    found = outcome(fxgrad.attribute, libra, args, kwargs, target=target, **given)
    if isinstance(found, fxgrad.FxgradError):
        return
    require(call.target not in MUST_FAIL, f"attribute took the target {call.target!r}: {found}")
    require(fits, "attribute took inputs that the module does not take")
    for one in found if isinstance(found, list) else [found]:
        str(one), one.total, one.completeness_error
        if finite([one.map, one.output]):
            complete(call, one)
    if isinstance(found, list) or not finite([found.map, found.output]):
        return
    mixed = batch > 1 and call.batch_axis is not None and call.target in ("mixing function", "one number")
    require(not mixed, f"attribute took the target {call.target!r}")
    if own is not None:
        defined(call, libra, args, kwargs, own, found)
    alone(call, libra, args, kwargs, found)


def examples_in(call: Call, args: Any, libra: nn.Module | None, kwargs: dict[str, Any]) -> int:
    """The number of examples: of the first input, or where its axes are none of examples, of the output."""
    first = next(iter(whole(args)), None)
    if call.batch_axis is None and libra is not None:
        y = logits(run(libra, args, kwargs))
        return len(y) if y.dim() else 1
    if call.batch_axis is None or not isinstance(first, Tensor) or first.dim() <= call.batch_axis:
        return 2
    return first.shape[call.batch_axis]


def complete(call: Call, found: fxgrad.Attribution) -> None:
    """The shares add up to the target's value, unless the note says why they do not."""
    if call.method not in SHARES or found.note or call.policy not in BALANCED:
        return
    assert found.apart is not None
    parts = [m.reshape(len(m), -1) for m in maps_of(found).values()]
    total = (sum(p.sum(1) for p in parts) + found.apart) / found.copies
    scale = max(
        float(t.abs().sum(-1).max()) for t in [*parts, found.apart[:, None], found.output[:, None]] if t.numel()
    )
    close(total, found.output, COMPLETE, f"{call.method} is incomplete, and does not say why", scale)


def leaves_of(libra: fxgrad.ConvertedModule, args: Any, kwargs: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """(the attributed inputs by name, with gradients on; the outputs that depend on them)."""
    entries = libra.entries(args, kwargs)
    declared = libra.classified.captured.entries
    entries = [v.detach().clone().requires_grad_() if e.attributed else v for e, v in zip(declared, entries)]
    return {e.name: v for e, v in zip(declared, entries) if e.attributed}, libra.run(entries)


def defined(
    call: Call,
    libra: fxgrad.ConvertedModule,
    args: Any,
    kwargs: dict[str, Any],
    own: Callable[[Any], Tensor],
    found: fxgrad.Attribution,
) -> None:
    """The target's value is the function's; input_x_gradient is x times what autograd gives for it."""
    leaves, outputs = leaves_of(libra, args, kwargs)
    if call.batch_axis == 1 and logits(outputs).dim() == 3 and "function" not in call.target:
        outputs = logits(outputs).transpose(0, 1)  # the examples of the output are on its second axis
    values = own(outputs)
    close(found.output, values.detach(), 1e-12, "another value of the target")
    if call.method not in ("input_x_gradient", "gradient"):
        return
    gradients = torch.autograd.grad(values.sum(), list(leaves.values()), allow_unused=True)
    products = {
        name: torch.zeros_like(x)
        if g is None
        else g.detach() * (x.detach() if call.method == "input_x_gradient" else 1)
        for (name, x), g in zip(leaves.items(), gradients)
    }
    maps = maps_of(found)
    for name, ours in maps.items():
        require(reduced(ours, products, name), f"{call.method} of {name!r} {tuple(ours.shape)} is not x * dy/dx")


def reduced(ours: Tensor, products: dict[str, Tensor], name: str) -> bool:
    """Whether a map is an input's product, summed over some axes; or that of all inputs with the same shape.

    The map of an input that all examples share has their parts, which add up to it.
    """
    alike = [p for p in products.values() if p.shape == products[name].shape]
    for theirs in (products[name], torch.stack(alike).sum(0)):
        near = {"rtol": 1e-9, "atol": BAR * float(theirs.abs().max())}
        axes = range(theirs.dim())
        for some in itertools.chain.from_iterable(itertools.combinations(axes, n) for n in axes):
            sums = theirs.sum(some) if some else theirs
            for moved in (sums, sums.transpose(0, 1) if sums.dim() > 1 else sums):
                for map in (ours, ours.sum(0)):
                    if moved.shape == map.shape and torch.allclose(map, moved, **near):
                        return True
    return False


def alone(
    call: Call, libra: fxgrad.ConvertedModule, args: Any, kwargs: dict[str, Any], found: fxgrad.Attribution
) -> None:
    """Each example of the batch has the attribution that it has alone."""
    batch = len(found.output)
    if kwargs or call.batch_axis is None or call.method in RANDOM or batch < 2:
        return
    i = call.detail % batch
    target, _ = TARGETS[call.target](batch, slice(i, i + 1))
    one = outcome(fxgrad.attribute, libra, call.cut(whole(args), i), target=target, **call.given())
    if isinstance(one, fxgrad.FxgradError):
        return
    scale = max(float(m.abs().max()) for m in [*maps_of(found).values(), found.output] if m.numel())
    for name, both in maps_of(found).items():
        close(both[i : i + 1], maps_of(one)[name], BAR, f"example {i} alone, {call.method} of {name!r}", scale)
    if found.apart is not None and one.apart is not None:
        close(found.apart[i : i + 1], one.apart, BAR, f"example {i} alone, apart", scale)


def try_vjp(call: Call, libra: Any, model: Any, args: Any, kwargs: Any, fits: bool) -> None:
    """K gradients are those of autograd, one by one."""
    outputs = outcome(run, libra, args, kwargs)
    if not fits:
        require(isinstance(outcome(fxgrad.vjp, libra, args, None, kwargs), fxgrad.FxgradError), "vjp took wrong inputs")
        return
    generator = torch.Generator().manual_seed(call.seed)

    def cotangent(y: Any) -> Any:
        real = isinstance(y, Tensor) and y.is_floating_point()
        return torch.randn(2, *y.shape, generator=generator, dtype=torch.float64).to(y) if real else None

    rows = pytree.tree_map(cotangent, outputs)
    wrong: list[Any] = [None, 3, torch.ones(2), "ones", [], pytree.tree_map(lambda y: y, outputs), torch.ones(0)]
    if call.detail < len(wrong):
        found = outcome(fxgrad.vjp, libra, args, wrong[call.detail], kwargs)
        if not isinstance(found, fxgrad.FxgradError):
            same(found.outputs, outputs, "vjp's outputs")
    found = outcome(fxgrad.vjp, libra, args, rows, kwargs, chunk=(None, 1, 2, 0, -1, "two", 1.5)[call.detail % 7])
    if isinstance(found, fxgrad.FxgradError):
        return
    same(found.outputs, outputs, "vjp's outputs")
    leaves, again = leaves_of(libra, args, kwargs)
    given = pytree.tree_leaves(rows, is_leaf=lambda v: v is None)
    pairs = [(y, v) for y, v in zip(pytree.tree_leaves(again), given) if v is not None and y.requires_grad]
    for k in range(2 if pairs and leaves else 0):
        total = sum((y * v[k]).sum() for y, v in pairs)
        theirs = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
        for (name, x), g in zip(leaves.items(), theirs):
            close(found.gradients[name][k], torch.zeros_like(x) if g is None else g, 1e-10, f"vjp of {name!r}")


def try_check(call: Call, libra: Any, model: Any, args: Any, kwargs: Any, fits: bool) -> None:
    """The proof passes under a policy that balances; what does not fit is refused."""
    cotangents: list[Any] = [None, None, None, None, torch.ones(3), 3, "one", []]
    options = {"cotangent": cotangents[call.detail % 8], "original": model}
    report = outcome(fxgrad.check, libra, args, kwargs, seed=call.seed, **options)
    if isinstance(report, fxgrad.FxgradError):
        return
    str(report), report.to_json()
    require(fits or not (whole(args) or kwargs), "check took inputs that the module does not take")
    plain = options["cotangent"] is None and call.policy in BALANCED and finite(outcome(run, libra, args, kwargs))
    if plain and call.inputs in FITTING and call.converted == "example":
        require(report.forward_identical, "check: the forward differs")
        require(report.completeness_error <= COMPLETE, f"check: not complete\n{str(report)[:600]}")


def try_save(call: Call, libra: Any, model: Any, args: Any, kwargs: Any, fits: bool) -> None:
    """A loaded module has the same outputs and attribution, to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ("libra.pt2", "libra.pt2", "none/libra.pt2", "")[call.detail % 4])
        saved = outcome(fxgrad.save, libra, path)
        if isinstance(saved, fxgrad.FxgradError):
            require(not path.is_file(), "save failed, and left a file")
            return
        loaded = outcome(fxgrad.load, path)
        require(isinstance(loaded, fxgrad.ConvertedModule), f"load refuses what save wrote: {loaded}")
        if not fits or call.inputs not in FITTING:
            Path(path).write_bytes(Path(path).read_bytes()[: 100 * call.seed])
            require(isinstance(outcome(fxgrad.load, path), fxgrad.FxgradError), "load took half a file")
            return
    same(outcome(run, loaded, args, kwargs), outcome(run, libra, args, kwargs), "the loaded module")
    target, _ = TARGETS["function"](2, slice(None))
    ours, theirs = (outcome(fxgrad.attribute, m, args, kwargs, target=target) for m in (loaded, libra))
    require(type(ours) is type(theirs), f"loaded: {ours}; before: {theirs}")
    if not isinstance(ours, fxgrad.FxgradError):
        same([*maps_of(ours).values(), ours.apart], [*maps_of(theirs).values(), theirs.apart], "loaded attribution")


def try_again(call: Call, libra: Any, model: Any, args: Any, kwargs: Any, fits: bool) -> None:
    """Another policy from the same capture has the model's forward; what is converted is not converted again."""
    policy = ("libragrad", "gradient", "attnlrp", "nothing", 3)[call.detail % 5]
    other = outcome(libra.under, policy)
    if isinstance(other, fxgrad.FxgradError):
        return
    if fits:
        same(outcome(run, other, args, kwargs), outcome(run, libra, args, kwargs), f"under {policy}")
    require(isinstance(outcome(fxgrad.convert, other, args, kwargs), fxgrad.FxgradError), "converted twice")


def try_export(call: Call, libra: Any, model: Any, args: Any, kwargs: Any, fits: bool) -> None:
    """The explainer as a .pt2 file gives the model's logits and input_x_gradient's shares."""
    wrong: dict[int, dict[str, Any]] = {
        **{0: {"method": "nothing"}, 1: {"pool": 0}, 2: {"channels": 9}, 3: {"targets": 0}, 4: {"targets": -1}},
        **{5: {"metadata": {"a": object()}}, 6: {"output": "nothing"}, 7: {"channels": "all"}, 8: {"pool": "two"}},
    }
    with tempfile.TemporaryDirectory() as folder:
        if call.detail in wrong:
            path = Path(folder, "explainer.txt" if call.seed % 5 == 0 else "explainer.pt2")
            found = outcome(fxgrad.export_explainer, libra, args, path, kwargs=kwargs, **wrong[call.detail])
            require(isinstance(found, fxgrad.FxgradError), f"export_explainer took {wrong[call.detail]}: {found}")
            return
        path = Path(folder, "explainer.pt2")
        found = outcome(fxgrad.export_explainer, libra, args, path, kwargs=kwargs, channels=None, completeness=False)
        if isinstance(found, fxgrad.FxgradError):
            return
        require(fits, "export_explainer took inputs that the module does not take")
        explainer = torch.export.load(path).module()
    explained(call, libra, explainer, args, kwargs)


def explained(call: Call, libra: Any, explainer: Any, args: Any, kwargs: Any) -> None:
    leaves, outputs = leaves_of(libra, args, kwargs)
    y = logits(outputs)
    if y.dim() != 2 or not finite(outputs):
        return
    target = torch.arange(len(y)) % y.shape[1]
    gradients = torch.autograd.grad(y.gather(1, target[:, None]).sum(), list(leaves.values()), allow_unused=True)
    given = pytree.tree_leaves((args, kwargs))
    theirs, *found = explainer(*(v for v in given if isinstance(v, Tensor)), target)
    close(theirs, y.detach(), 1e-12, "the explainer's logits")
    for (name, x), g, ours in zip(leaves.items(), gradients, found):
        close(ours, torch.zeros_like(x) if g is None else x.detach() * g, 1e-9, f"the explainer of {name!r}")


ACTIONS = {"vjp": try_vjp, "check": try_check, "save": try_save, "again": try_again, "export": try_export}


@sample(calls(), EXAMPLES)
def test_random_calls(calls: list[Call]) -> None:
    note(f"{calls[0].model.model}")
    attempt(calls)
