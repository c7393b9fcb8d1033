"""The run: every unit of work that is not stored yet, shared among the processes of `torchrun`.

A unit is a chunk of pictures, or of texts, under one policy, with all methods. A unit's results depend on the plan
only, not on other units or processes: so they are the same for any number of processes, and after any crash. All units
of a chunk go to one process, which measures policies that give a model the same backwards only once.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fxgrad.data import open_data, order
from fxgrad.errors import InputError
from fxgrad.evaluate import baselines, bench, text_bench
from fxgrad.evaluate.bench import Bench
from fxgrad.evaluate.measure import all_metrics, named_metric
from fxgrad.evaluate.methods import Attribute, attributes, takes_gradient
from fxgrad.evaluate.plan import ANY, Plan
from fxgrad.evaluate.processes import everywhere, processes, wait_for_others
from fxgrad.evaluate.store import Results, Store, read
from fxgrad.evaluate.text_bench import TextBench
from fxgrad.evaluate.units import Unit, Units
from fxgrad.metrics import Metric

Watch = Callable[[int, int, str], None]
"""Called with (units done, all units, what comes next)."""


def evaluate(
    plan: Plan,
    folder: str,
    *,
    methods: Mapping[str, Attribute] | None = None,
    metrics: Sequence[Metric] = (),
    watch: Watch = lambda done, total, what: None,
) -> Results:
    """Measure what the plan asks for and the folder does not have yet.

    Under `torchrun`, every process measures its share, and waits for the others at the end.

    Args:
        plan: what to measure.
        folder: the folder of the results, old and new; on several machines a shared one, or one each, to be merged by
            copying.
        methods: name -> method, for those of the plan's methods that are not fxgrad's.
        metrics: your own metrics, in addition to fxgrad's and to the plan's.
        watch: a callback for progress: (done, total, what).

    Returns:
        All results in the folder; only the facts if this is not the first process. A method that a model does not
        support is in `refused`, with the reason.

    Raises:
        InputError: data, model, method or metric that does not exist, two metrics of one name; or a folder with results
            of other settings.
        CaptureError, NoRuleError, NotBalanceableError: a model cannot be converted.

    Example:
        >>> import tempfile
        >>> plan = Plan(("fxgrad.demo:digits_vit",), ("input_x_gradient",), ("gradient",), count=2, steps=0)
        >>> results = evaluate(plan, tempfile.mkdtemp())
        >>> len(results.values["fxgrad.demo:digits_vit", "gradient", "input_x_gradient"]["iou"])
        2
        >>> largest = Metric("largest", "lower", lambda measured: measured.maps.amax((2, 3)))
        >>> results = evaluate(plan, tempfile.mkdtemp(), metrics=[largest])
        >>> len(results.values["fxgrad.demo:digits_vit", "gradient", "input_x_gradient"]["largest"])
        2
    """
    data = open_data(plan.data)
    of_texts = bool(getattr(data, "of_texts", False))
    always = text_bench.ALWAYS if of_texts else baselines.ALWAYS
    named = [m for m in plan.methods if m == "random" or m not in always]
    known = {
        **attributes(["random"]),
        **(attributes(named, plan.options, value=plan.value, maps=plan.maps) if methods is None else methods),
    }
    own = [*map(named_metric, plan.metrics), *metrics]
    measured = chosen_metrics(all_metrics(own, of_texts), plan.measures)
    noted = text_bench.text_settings(plan) if of_texts else bench.picture_settings(plan)
    settings = noted | ({"metrics": {m.name: m.better for m in own}} if own else {})
    chosen = order(data, plan.count, seed=plan.seed, shuffle=plan.shuffle, ids=plan.ids, mode=plan.mode)
    with processes() as (rank, size):
        store = Store(folder, rank)
        try:
            store.note("settings", settings)
            done = everywhere(read(folder))
            todo = [left for unit in _units(plan, len(chosen), always) if (left := _left(unit, *done))]
            mine = _share(todo, rank, size)
            runner: Units | None = None
            make: Any = TextBench if of_texts else Bench
            for number, unit in enumerate(mine):
                watch(number, len(mine), f"{unit.model}, {unit.policy}")
                if runner is None or runner.model != unit.model:
                    runner = make(plan, data, chosen, known, measured, unit.model)
                    store.note(f"weights of {unit.model}", runner.fingerprint)
                runner.run(unit, store)
            watch(len(mine), len(mine), "")
        finally:
            store.close()
        wait_for_others()
        if rank:
            return read(folder, facts_only=True)
        results = read(folder)
        _refuse_missing(plan, len(chosen), results, folder, always)
        return results


def chosen_metrics(metrics: Iterable[Metric], patterns: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics whose names fit one of the patterns; all of them without patterns.

    Raises:
        InputError: a pattern fits none.

    Example:
        >>> [metric.name for metric in chosen_metrics(all_metrics([]), ["srg_a*"])]
        ['srg_aopc', 'srg_accuracy']
    """
    found = tuple(metrics)
    names = [metric.name for metric in found]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"no metric is called {pattern!r}. There are {', '.join(names)}.")
    return tuple(m for m in found if not patterns or any(fnmatch.fnmatchcase(m.name, p) for p in patterns))


def _units(plan: Plan, count: int, always: Sequence[str]) -> Iterator[Unit]:
    bound = tuple(m for m in plan.methods if m not in always and takes_gradient(m))
    free = tuple(dict.fromkeys([*(m for m in plan.methods if m not in bound), *always]))
    for model in plan.models:
        for start in range(0, count, plan.chunk):
            for policy, methods in [(ANY, free), *((p, bound) for p in plan.policies)]:
                yield Unit(model, policy, methods, start, min(start + plan.chunk, count))


def _share(units: Sequence[Unit], rank: int, size: int) -> list[Unit]:
    """The units of every `size`-th chunk, starting with chunk `rank`."""
    chunks = list(dict.fromkeys((unit.model, unit.start) for unit in units))
    mine = set(chunks[rank::size])
    return [unit for unit in units if (unit.model, unit.start) in mine]


def _left(unit: Unit, done: frozenset[Any], refused: frozenset[Any]) -> Unit | None:
    """The part of a unit that is neither done nor refused; None if there is none."""
    methods = tuple(
        m
        for m in unit.methods
        if (unit.model, unit.policy, m, unit.start, unit.stop) not in done
        and (unit.model, unit.policy, m) not in refused
    )
    return replace(unit, methods=methods) if methods else None


def _refuse_missing(
    plan: Plan, count: int, results: Results, folder: str, always: Sequence[str] = baselines.ALWAYS
) -> None:
    """Raise if the folder lacks results, which other machines wrote to other folders: the page would lack them too."""
    missing = [u for u in _units(plan, count, always) if _left(u, results.done, frozenset(results.refused))]
    if missing:
        raise InputError(
            f"{len(missing)} units of work are not in {folder}, but in those of other machines. Copy all their "
            ".sqlite files into one folder, under different names, and read that: fxgrad evaluate --summary --store "
            "FOLDER."
        )
