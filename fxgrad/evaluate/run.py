"""The run: every unit of work that the store does not hold yet, shared among the processes of `torchrun`.

A unit is a chunk of pictures under one policy, with all methods. What a unit computes depends on the plan only, and on
nothing that another unit or process did: hence the same results whatever the number of processes, and after any crash.
All units of a chunk go to one process, which measures policies that give a model the same rules only once.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fxgrad.data import Batch, Data, collate, open_data
from fxgrad.data.models import LoadedModel, load_model
from fxgrad.errors import FxgradError, InputError, first_line
from fxgrad.evaluate.measure import Ruler
from fxgrad.evaluate.methods import POLICY_FREE, Attribute, Attribution, attributes, grid_of
from fxgrad.evaluate.plan import ANY, Plan
from fxgrad.evaluate.store import Results, Store, read
from fxgrad.metrics import Dropping, Removal, Replacing
from fxgrad.module.converted import ConvertedModule
from fxgrad.pipeline import convert

Watch = Callable[[int, int, str], None]
"""Called with how many units are done, of how many, and what comes next."""


Measured = tuple[Mapping[str, Mapping[str, list[float]]], Mapping[str, str]]
"""Method -> metric -> values, and method -> why it cannot be used."""

_PATIENCE = timedelta(days=2)
"""How long a process waits for the others, whose share may take longer."""


@dataclass(frozen=True)
class Unit:
    """One chunk of pictures under one policy, and the methods that are not measured there yet."""

    model: str
    policy: str
    methods: tuple[str, ...]
    start: int
    stop: int


def evaluate(
    plan: Plan,
    folder: str,
    *,
    methods: Mapping[str, Attribute] | None = None,
    watch: Watch = lambda done, total, what: None,
) -> Results:
    """Measure what the plan asks for and the folder does not hold yet.

    Under `torchrun`, every process measures its share, and waits for the others at the end.

    Args:
        plan: what to measure.
        folder: of the results, which may hold some already; on several machines, a shared one, or one each, to be
            merged by copying.
        methods: those of the plan by name, where they are not fxgrad's own.
        watch: is told how far this process has come.

    Returns:
        All results in the folder, or only the facts where this is not the first process. A method that a model does
        not have is in `refused`, with the reason.

    Raises:
        InputError: data, model or method that does not exist; or a folder that holds results of other settings.
        CaptureError, NoRuleError, NotBalanceableError: a model cannot be converted.

    Example:
        >>> import tempfile
        >>> plan = Plan(("fxgrad.demo:digits_vit",), ("input_x_gradient",), ("gradient",), count=2, steps=0)
        >>> results = evaluate(plan, tempfile.mkdtemp())
        >>> len(results.values["fxgrad.demo:digits_vit", "gradient", "input_x_gradient"]["iou"])
        2
    """
    known = attributes(plan.methods, plan.options) if methods is None else methods
    data = open_data(plan.data)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(plan.seed))[: plan.count].tolist()
    with _processes() as (rank, size):
        store = Store(folder, rank)
        try:
            store.note("settings", plan.settings)
            done = _everywhere(read(folder))
            todo = [left for unit in _units(plan, len(order)) if (left := _left(unit, *done))]
            mine = _share(todo, rank, size)
            bench: Bench | None = None
            for number, unit in enumerate(mine):
                watch(number, len(mine), f"{unit.model}, {unit.policy}")
                if bench is None or bench.loaded.name != unit.model:
                    bench = Bench(plan, data, order, known, unit.model)
                    store.note(f"weights of {unit.model}", bench.fingerprint)
                bench.run(unit, store)
            watch(len(mine), len(mine), "")
        finally:
            store.close()
        if size > 1:
            dist.barrier()
        if rank:
            return read(folder, facts_only=True)
        results = read(folder)
        _refuse_missing(plan, len(order), results, folder)
        return results


class Bench:
    """One model on the bench: loaded, converted under every policy that was asked for, its pictures at hand."""

    def __init__(
        self, plan: Plan, data: Data, order: Sequence[int], methods: Mapping[str, Attribute], model: str
    ) -> None:
        self.plan, self.data, self.order, self.methods = plan, data, order, methods
        self.loaded: LoadedModel = load_model(
            model, plan.pretrained, checkpoint=plan.checkpoint, input_size=plan.input_size
        )
        # By their number, the processes of a machine take its GPUs in turn.
        device = "cpu" if plan.device == "cpu" else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.place: dict[str, Any] = {"device": torch.device(device), "dtype": getattr(torch, plan.dtype)}
        self.fingerprint = _fingerprint(self.loaded.model)
        example = self.loaded.example().to(**self.place)
        model_there = self.loaded.model.to(**self.place)
        self.plain = convert(model_there, (example,), rules="gradient").requires_grad_(False)
        self.under = functools.cache(self._under)
        self.first_alike = functools.cache(self._first_alike)
        self.batch = functools.lru_cache(1)(self._batch)
        self.measured = functools.lru_cache(len(plan.policies) + 1)(self._measured)

    @functools.cached_property
    def ruler(self) -> Ruler:
        size, grid = self.loaded.preprocess.size, grid_of(self.plain)
        pixels = Replacing(self.plain, (size[1], size[2]), "blur") if self.plan.steps else None
        return Ruler(
            removal(self.plain, grid, self.plan.removal),
            pixels,
            self.plan.fractions,
            self.plan.steps,
            self.data.multilabel,
        )

    def run(self, unit: Unit, store: Store) -> None:
        """Measure a unit and write it down."""
        store.note(f"removal of {unit.model}", self.ruler.tokens.name)
        pictures, *_ = self.batch(unit.start, unit.stop)
        measured, refused = self.measured(unit.start, unit.stop, self.first_alike(unit.policy), unit.methods)
        for method, reason in refused.items():
            store.refuse(unit.model, unit.policy, method, reason)
        store.add(unit.model, unit.policy, measured, list(pictures.ids), unit.start, unit.stop)

    def _measured(self, start: int, stop: int, policy: str, methods: tuple[str, ...]) -> Measured:
        pictures, x, target, logits = self.batch(start, stop)
        converted = self.under(policy)
        attributions: dict[str, Attribution] = {}
        refused: dict[str, str] = {}
        for method in methods:
            try:
                attributions[method] = self.methods[method](
                    converted, x, target, self.ruler.tokens.grid, self.plan.seed + start
                )
            except FxgradError as error:
                refused[method] = first_line(error)
        measured = self.ruler.measure(pictures, x, target, logits, attributions) if attributions else {}
        return measured, refused

    def _first_alike(self, policy: str) -> str:
        """The first of the plan's policies that gives every node of this model the same rule."""
        if policy == ANY:
            return "gradient"
        decisions = self.under(policy).classified.decisions
        return next(p for p in self.plan.policies if self.under(p).classified.decisions == decisions)

    def _under(self, policy: str) -> ConvertedModule:
        return self.plain.under(policy)

    def _batch(self, start: int, stop: int) -> tuple[Batch, Tensor, Tensor, Tensor]:
        pictures = collate([self.data[i] for i in self.order[start:stop]], self.loaded.preprocess)
        x = pictures.x.to(**self.place)
        with torch.no_grad():
            logits = self.plain(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError(f"{self.loaded.name} does not return logits (batch, classes), which evaluate needs.")
        largest = int(pictures.labels.max())
        if self.plan.target == "label" and largest >= logits.shape[1]:
            raise InputError(
                f"{self.plan.data} has a label {largest}, but {self.loaded.name} has {logits.shape[1]} classes. Use a "
                "model of this data, or --target predicted."
            )
        target = pictures.labels.to(x.device) if self.plan.target == "label" else logits.argmax(1)
        return pictures, x, target, logits


def removal(converted: ConvertedModule, grid: tuple[int, int], how: str = "auto") -> Removal:
    """How tokens are taken from a model.

    Args:
        converted: the model.
        grid: its patches.
        how: "drop", "zero", "blur", or "auto": drop where the model can run on fewer tokens, else blur.

    Raises:
        InputError: "drop", and the model cannot.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
        >>> removal(convert(model, (torch.zeros(2, 1, 4, 4),)), (2, 2), "zero").name
        'set to zero'
    """
    if how in ("zero", "blur"):
        return Replacing(converted, grid, how)
    try:
        return Dropping(converted, grid)
    except InputError as error:
        if how == "drop":
            raise
        blurring = Replacing(converted, grid, "blur")
        blurring.name += f" ({str(error).rstrip('.')})"
        return blurring


def _units(plan: Plan, count: int) -> Iterator[Unit]:
    free = tuple(m for m in plan.methods if m in POLICY_FREE)
    bound = tuple(m for m in plan.methods if m not in POLICY_FREE)
    for model in plan.models:
        for start in range(0, count, plan.chunk):
            for policy, methods in [(ANY, free), *((p, bound) for p in plan.policies)]:
                yield Unit(model, policy, methods, start, min(start + plan.chunk, count))


def _share(units: Sequence[Unit], rank: int, size: int) -> list[Unit]:
    """The units of every size-th chunk, from the rank-th on."""
    chunks = list(dict.fromkeys((unit.model, unit.start) for unit in units))
    mine = set(chunks[rank::size])
    return [unit for unit in units if (unit.model, unit.start) in mine]


def _left(unit: Unit, done: frozenset[Any], refused: frozenset[Any]) -> Unit | None:
    """What of a unit is still to be done."""
    methods = tuple(
        m
        for m in unit.methods
        if (unit.model, unit.policy, m, unit.start, unit.stop) not in done
        and (unit.model, unit.policy, m) not in refused
    )
    return replace(unit, methods=methods) if methods else None


def _refuse_missing(plan: Plan, count: int, results: Results, folder: str) -> None:
    """Whatever other machines wrote elsewhere would be missing from the page."""
    missing = [u for u in _units(plan, count) if _left(u, results.done, frozenset(results.refused))]
    if missing:
        raise InputError(
            f"{len(missing)} units of work are not in {folder}, but in those of other machines. Copy all their "
            ".sqlite files into one folder, under different names, and read that: fxgrad evaluate --summary --store "
            "FOLDER."
        )


def _everywhere(results: Results) -> tuple[frozenset[Any], frozenset[Any]]:
    """What is done on any machine: all processes must see the same, to share the rest."""
    own = (results.done, frozenset(results.refused))
    if not dist.is_initialized():
        return own
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return frozenset().union(*(d for d, _ in everyone)), frozenset().union(*(r for _, r in everyone))


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """Number of this process, and how many there are: by the variables that `torchrun` sets."""
    if "WORLD_SIZE" not in os.environ or not dist.is_available():
        yield 0, 1
        return
    rank, size, attempt = (int(os.environ.get(v, "0")) for v in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    master = rank == 0 and not served
    meeting = dist.TCPStore(address, port, size, master, _PATIENCE)  # type: ignore[attr-defined]
    # The meeting place outlives a crash, and so do the addresses of whom it killed.
    store = dist.PrefixStore(f"fxgrad/{attempt}", meeting)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield rank, size
    finally:
        dist.destroy_process_group()


def _fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
