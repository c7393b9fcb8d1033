"""Several methods and targets at the same inputs: one recorded forward pass, and one backward pass for each target.

What methods read of the run is known beforehand (`Method.reads`), so all of it is kept in one run. Only methods that
move the inputs run the model again. Examples whose contributions cannot be told apart have a run each, one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxgrad.errors import FxgradError, InputError
from fxgrad.methods.aim import aimed, axis_of, outputs_of
from fxgrad.methods.alone import inseparable
from fxgrad.methods.attribution import Attribution, joined
from fxgrad.methods.definition import Map, Method
from fxgrad.methods.layers import output_of
from fxgrad.methods.names import Names
from fxgrad.methods.options import refuse_wrong
from fxgrad.methods.outputs import called
from fxgrad.methods.parts import NOTHING, Anatomy
from fxgrad.methods.problem import Problem, size_of_batch
from fxgrad.methods.scoring import scored
from fxgrad.methods.search import GRAPH, Search
from fxgrad.methods.targets import Contrast, Target
from fxgrad.module.converted import ConvertedModule
from fxgrad.run.runs import Runs

ANATOMY = ("input", "blocks", "grid", "prefix", "class_token", "channels")
"""Options of every method that say what the parts of the model are."""
GENERAL = ("layer", *ANATOMY)
"""Options of `fxgrad.attribute` that every method has; a layer, every method of one layer."""

Found = dict[int, "Attribution | FxgradError"]
"""Index of what is asked for -> its attribution, or why there is none."""


@dataclass(frozen=True)
class Asked:
    """A method, and what it is asked for.

    Attributes:
        method: the method.
        layer: module path for methods of one layer; None: the method's default.
        anatomy: of the options of `fxgrad.attribute`, `input`, `blocks`, `grid`, `prefix`, `class_token`, `channels`.
        options: the method's own options.
    """

    method: Method
    layer: str | None = None
    anatomy: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, method: Method, options: Mapping[str, Any]) -> Asked:
        """A method with options of every kind; None is what was not given.

        Example:
            >>> from fxgrad.methods.entry import known
            >>> asked = Asked.of(known("gradcam_plus"), {"layer": "blocks.3", "mean": "patches", "grid": (4, 4)})
            >>> asked.layer, dict(asked.anatomy), dict(asked.options)
            ('blocks.3', {'grid': (4, 4)}, {'mean': 'patches'})
        """
        given = {k: v for k, v in options.items() if k in ANATOMY and v is not None}
        own = {k: v for k, v in options.items() if k not in GENERAL}
        if "channels" in options:
            given["channels"] = options["channels"]  # None has a meaning
        return cls(method, options.get("layer"), given, own)

    @property
    def reads(self) -> bool:
        """Whether it uses the run at the inputs."""
        return self.method.reads != NOTHING


def alike(asked: Sequence[Asked]) -> list[list[int]]:
    """Indices of the methods that have the same anatomy, in groups.

    Example:
        >>> from fxgrad.methods.entry import known
        >>> alike([Asked(known("saliency"), anatomy={"prefix": n}) for n in (1, 0, 1)])
        [[0, 2], [1]]
    """
    groups: list[tuple[Mapping[str, Any], list[int]]] = []
    for i, one in enumerate(asked):
        group = next((places for anatomy, places in groups if anatomy == one.anatomy), None)
        if group is None:
            groups.append((one.anatomy, [i]))
        else:
            group.append(i)
    return [places for _, places in groups]


def _anatomy(converted: ConvertedModule, entries: Sequence[Any], given: Mapping[str, Any]) -> Anatomy:
    """The anatomy for some choices, searched once for inputs of one shape if it does not depend on their elements."""
    shapes = tuple(tuple(e.shape) if isinstance(e, Tensor) else () for e in entries)
    key = "anatomy", repr(given), shapes
    if key not in converted.derived:
        search = Search(converted.classified, given["input"], entries)
        found = search.anatomy(*(given[name] for name in ANATOMY[1:]))
        if search.by_elements:
            return found
        converted.derived[key] = found
    kept: Anatomy = converted.derived[key]
    return kept


class Together:
    """Methods of one converted model at the same inputs, of the same anatomy.

    Args:
        converted, args, kwargs: as for `fxgrad.attribute`.
        asked: the methods.
        targets: how many targets follow.
        caught: errors of single methods that are returned in place of attributions; others are raised.

    Raises:
        InputError: there are no examples, an op fails, or there is no such part.
    """

    def __init__(
        self,
        converted: ConvertedModule,
        args: tuple[Any, ...] | Tensor,
        kwargs: Mapping[str, Any] | None,
        asked: Sequence[Asked],
        targets: int,
        caught: tuple[type[FxgradError], ...] = (),
    ) -> None:
        for one in asked:
            refuse_wrong({"layer": one.layer, **{k: v for k, v in one.anatomy.items() if k != "channels"}})
        with torch.no_grad():
            entries = converted.entries(args, kwargs)
        given = {**dict.fromkeys(ANATOMY), "channels": GRAPH, **asked[0].anatomy}
        anatomy = _anatomy(converted, entries, given)
        self.converted, self.entries, self.anatomy = converted, entries, anatomy
        self.asked, self.caught = asked, caught
        self.runs = Runs(converted, entries, *_needed(converted, anatomy, asked), again=targets > 1)
        self.bytes = 0
        rows = partial(size_of_batch, converted.classified, entries, anatomy)
        if anatomy.inputs and not rows():
            raise InputError(f"input {anatomy.input!r} has no examples: its first axis has size 0.")
        self.outputs = self._outputs(several=not anatomy.inputs or rows() > 1)
        self.leaves, self.spec = pytree.tree_flatten(self.outputs)
        self.batch = rows(self.leaves)
        if not self.batch:
            raise InputError(f"input {anatomy.input!r} has no examples: its first axis has size 0.")
        self.where = outputs_of(converted.classified, anatomy)

    def _outputs(self, several: bool) -> Any:
        """The outputs of the run that all methods share, or of a plain forward pass if there is none."""
        alone = several and inseparable(self.converted.classified, self.anatomy)
        using = [a.method for a in self.asked if a.reads and not (alone and a.method.shares)]
        if not using:
            with torch.no_grad():
                return self.converted.run(self.entries)
        gradients = any(method.takes_gradient for method in using)
        outputs = self.runs.recorded().outputs if gradients else self.runs.looked()
        return pytree.tree_unflatten(outputs, self.converted.classified.captured.out_spec)

    def problem(self, target: Target, class_names: Names | None) -> Problem:
        """The problem of one target.

        Raises:
            InputError: there is no such target, or it mixes the examples of the batch.
        """
        count = self.batch if self.anatomy.inputs else _count(target, self.outputs, self.batch)
        axis = axis_of(self.leaves, self.where, count)
        fitted = scored(target, self.outputs, class_names, batch=count, axis=axis)
        aim = aimed(fitted, self.leaves, self.spec, self.where, count)
        return Problem(self.converted, self.entries, aim, self.anatomy, runs=self.runs)

    def solve(self, problems: Sequence[Problem]) -> list[Found]:
        """What was asked for, of every problem. Methods that run at other inputs come last, when the run is freed."""
        found: list[Found] = [{} for _ in problems]
        for reads in (True, False):
            chosen = [i for i, asked in enumerate(self.asked) if asked.reads is reads]
            for i, (problem, own) in enumerate(zip(problems, found)) if chosen else ():
                if reads and i:
                    self._run_ahead(problems[i:], chosen)
                for way, some in _ways(problem, self.asked, chosen).items():
                    own |= self._in_one_way(problem, way, some)
                ran = problem.memo.pop("run", None)
                self.bytes = 0 if ran is None else ran[0].bytes
            self.runs.free()
        return found

    def _run_ahead(self, problems: Sequence[Problem], chosen: Sequence[int]) -> None:
        """Run the backward passes of the first of these problems at once, as many as the cache holds."""
        if "run" in problems[0].memo or not self.bytes:  # it ran, or the one before needed none
            return
        size = self.runs.recorded().fitting(len(problems), self.bytes)
        some = [p for p in problems[:size] if [*_ways(p, self.asked, chosen)] == [_AT_ONCE]]
        if size < 2 or len(some) < size:
            return
        outputs = self.runs.recorded().outputs
        for problem, ran in zip(some, self.runs.back_at_once([p.cotangents(outputs) for p in some])):
            problem.memo["run"] = ran, self.runs.sources

    def _in_one_way(self, problem: Problem, way: str, chosen: Sequence[int]) -> Found:
        """The attributions of some methods that get the examples of a batch in the same way."""
        if way == _AT_ONCE:
            return self._solved(problem, chosen)
        self.runs.again = self.runs.again or way == _WHOLE
        examples: list[Found] = []
        only = problem.only if way == _ALONE else partial(problem.only, whole=True)
        for i in range(problem.aim.batch):
            examples.append(self._solved(only(i), chosen))
            chosen = [j for j in chosen if isinstance(examples[-1][j], Attribution)]
        return {j: _joined([own[j] for own in examples if j in own]) for j in examples[0]}

    def _solved(self, problem: Problem, chosen: Sequence[int]) -> Found:
        """The attributions of methods of one problem."""
        found: Found = {}
        of_layer: dict[str | None, Problem] = {}
        for i in chosen:
            asked = self.asked[i]
            try:
                if asked.layer not in of_layer:
                    of_layer[asked.layer] = replace(problem, layer=asked.layer).on_layer()
                own = of_layer[asked.layer]
                if not asked.method.of_inputs:
                    own.refuse_several(asked.method.name)
                found[i] = _solved(asked.method, own, asked.options)
            except self.caught as error:
                found[i] = error
        return found


_AT_ONCE, _ALONE, _WHOLE = "all examples", "one by one", "one by one, with all others"


def _ways(problem: Problem, asked: Sequence[Asked], chosen: Sequence[int]) -> dict[str, list[int]]:
    """How methods get the examples -> these methods."""
    found: dict[str, list[int]] = {}
    for i in chosen:
        method, way = asked[i].method, _AT_ONCE
        if problem.aim.batch > 1:
            # Only contributions of constants need examples that run alone; other methods may move the inputs.
            if method.shares and problem.mixed:
                way = _ALONE
            elif method.takes_gradient and problem.shared:
                way = _WHOLE
        found.setdefault(way, []).append(i)
    return found


def _needed(converted: ConvertedModule, anatomy: Anatomy, asked: Sequence[Asked]) -> tuple[set[str], bool]:
    """(names of the nodes that methods read, whether any of them reads the contributions of constants)."""
    captured, decisions = converted.classified.captured, converted.classified.decisions
    nodes = {n.name: n for n in captured.graph.nodes}
    source = anatomy.input, dict(zip(captured.entry_names, captured.entry_nodes))[anatomy.input]
    names: set[str] = set()
    for one in asked:
        names |= anatomy.nodes(one.method.reads)
        with suppress(InputError):  # the method itself refuses a layer that is not there
            names |= {output_of(one.layer, nodes, decisions, source)} if one.layer is not None else set()
    return names & {n.name for n in converted.graph.nodes}, any(one.method.shares for one in asked)


def _count(target: Target, outputs: Any, rows: int) -> int:
    """How many values a target has where the inputs have no examples: one for each row, unless it is a function."""
    if isinstance(target, Contrast):
        return _count(target.a, outputs, rows)
    if not callable(target) or isinstance(target, Tensor):
        return rows
    with torch.no_grad():
        value = called(target, outputs)
    return (len(value) if value.dim() else 1) if isinstance(value, Tensor) else rows


def _joined(parts: Sequence[Attribution | FxgradError]) -> Attribution | FxgradError:
    """The attributions of all examples as one; the error, if there was one."""
    last = parts[-1]
    return joined([p for p in parts if isinstance(p, Attribution)]) if isinstance(last, Attribution) else last


def _solved(method: Method, problem: Problem, options: Mapping[str, Any]) -> Attribution:
    found = method.function(problem, **options)
    map = _checked(method, problem, found)
    maps = found.maps if problem.anatomy.input in found.maps else {problem.anatomy.input: map, **found.maps}
    return Attribution(
        method.name,
        problem.converted.classified.table.name,
        problem.aim.target.label,
        problem.row(problem.aim.values, always=True),
        problem.row(map.detach()),
        {name: problem.row(values.detach()) for name, values in maps.items()},
        None if found.apart is None else problem.row(found.apart.detach()),
        found.copies,
        problem.anatomy,
        problem.anatomy.size is not None and found.tokens is None,
        problem.aim.target.note,
    )


def _checked(method: Method, problem: Problem, found: Map) -> Tensor:
    """The pixels or the tokens of a method's map, checked to have the problem's shape."""
    returns = f"{method.name} must return Map(pixels=(batch, height, width)) or Map(tokens=(batch, tokens))"
    if not isinstance(found, Map):
        raise InputError(f"{returns}, of fxgrad.methods; it returned {type(found).__name__}.")
    map = found.tokens if found.pixels is None else found.pixels
    if map is None and problem.anatomy.input in found.maps:
        return problem.joint(found.maps)
    if map is None or (found.pixels is not None and found.tokens is not None):
        raise InputError(f"{returns}; its Map has {'neither' if map is None else 'both'}. Give one of them.")
    anatomy, batch = problem.anatomy, problem.batch
    if found.pixels is not None:
        size = anatomy.size or ("no", "picture")
        if tuple(map.shape) != (batch, *size):
            raise InputError(f"{returns}; its pixels are {tuple(map.shape)}, the input's {(batch, *size)}.")
    elif map.dim() != 2 or len(map) != batch or (anatomy.grid and map.shape[1] != anatomy.prefix + anatomy.count):
        tokens = anatomy.prefix + anatomy.count if anatomy.grid else "tokens"
        ahead = f", of which {anatomy.prefix} lie ahead of the patches" if anatomy.prefix else ""
        raise InputError(f"{returns}; its tokens are {tuple(map.shape)}, the model's ({batch}, {tokens}){ahead}.")
    if found.apart is not None and tuple(found.apart.shape) != (batch,):
        given = tuple(found.apart.shape)
        raise InputError(f"apart holds one number per example, ({batch},); {method.name} returned {given}. Sum it.")
    return map
