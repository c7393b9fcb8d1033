"""An explainer as an ONNX file: rewritten into ops that ONNX has, exported, checked, described."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from fxgrad.errors import ExportError, one_line
from fxgrad.explainer.compact import compact
from fxgrad.explainer.lowered import lowered
from fxgrad.explainer.tracing import Traced
from fxgrad.graph.places import Place

OPSET = 18
"""The newest opset that older runtimes support: layer norm is one op since 17, reductions are uniform since 18."""
_LOG = logging.getLogger(__name__)


def save_onnx(traced: Traced, path: Path, metadata: Mapping[str, str], weights: str = "float32") -> None:
    """Write an explainer as an ONNX file, its metadata as metadata_props.

    Args:
        traced: the program.
        path: of the file.
        metadata: key -> text.
        weights: how they are kept, one of `fxgrad.explainer.compact.WEIGHTS`.

    Raises:
        ExportError: onnx or onnxscript is missing; or an op has no ONNX form (named, with its place in the model).
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f'ONNX needs more packages ({error}): pip install "fxgrad[onnx]"') from error
    try:
        _LOG.info("writing ONNX")
        with _quiet():
            exported = torch.onnx.export(
                lowered(traced.program),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(traced.inputs),
                output_names=list(traced.outputs),
                external_data=False,
                optimize=False,
                verbose=False,
            )
    except Exception as error:
        raise _refusal(error, traced) from error
    assert exported is not None
    _slim(exported.model)
    model = exported.model_proto
    _tidy(model, traced)
    if weights != "float32":
        compact(model, weights, [t.numpy(force=True) for t in traced.program.state_dict.values()])
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _slim(model: Any) -> None:
    """Fold constants and drop what is unused or there twice, in place.

    The exporter's own optimizer also matches every node against some fifty patterns, which takes longer than all the
    rest; runtimes have these patterns, too.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)


def _tidy(model: Any, traced: Traced) -> None:
    """Name the dynamic axes; drop the exporter's notes at every node, which can be larger than a small model."""
    names = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and axis in traced.axes[value.name]:
                names[dim.dim_param] = traced.axes[value.name][axis]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param)
        value.ClearField("metadata_props")
    for part in (model.graph, *model.graph.node, *model.graph.initializer):
        part.ClearField("metadata_props")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's logs; its error says the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def _refusal(error: BaseException, traced: Traced) -> ExportError:
    """The error for an op without an ONNX form, with the places in the model that use it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'\)>", str(link))
        if found:
            op = ".".join(found.groups())
            places = list(dict.fromkeys(map(str, _uses(op, traced))))
            lines = "".join(f"\n  at {place}" for place in places[:3])
            more = f"\n  and {len(places) - 3} more" if len(places) > 3 else ""
            return ExportError(
                f"ONNX has no form of {op}:{lines}{more}\nReplace that layer by one that ONNX has, or export to .pt2 "
                "or .aoti, which take every op."
            )
    return ExportError(f"torch.onnx cannot export the explainer: {one_line(chain[-1])}")


def _uses(op: str, traced: Traced) -> Iterator[Place]:
    """The places in the model that use an op, directly or as a component of another op."""
    nodes = [n for n in traced.program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    if all(str(node.target) != op for node in nodes):
        pieces = torch._decomp.get_decompositions(list({node.target for node in nodes}))
        nodes = traced.program.run_decompositions(cast(Any, pieces)).graph.nodes
    for node in nodes:
        sources = node.meta.get("from_node") if str(node.target) == op else None
        while sources:
            if sources[-1].name in traced.places:
                yield traced.places[sources[-1].name]
                break
            sources = sources[-1].from_node
