"""What a problem's program has, whatever its inputs are: nodes, inputs, blocks, and what a cotangent reaches."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import fx

from fxgrad.classify.liveness import handed_on, passed_by
from fxgrad.graph.sizes import sizes_of
from fxgrad.graph.sums import sums_of
from fxgrad.methods.aim import Aim
from fxgrad.methods.alone import inseparable
from fxgrad.methods.layers import output_of
from fxgrad.methods.parts import Anatomy, Block
from fxgrad.module.converted import ConvertedModule


class Structure:
    """The part of a `Problem` that its graph, its anatomy and its target's outputs tell.

    Attributes:
        converted, aim, anatomy, layer: see `Problem`.
    """

    converted: ConvertedModule
    aim: Aim
    anatomy: Anatomy
    layer: str | None

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The captured graph's nodes by name."""
        return {n.name: n for n in self.converted.classified.captured.graph.nodes}

    @cached_property
    def inputs(self) -> dict[str, fx.Node]:
        """Name of an input or embedding -> its placeholder."""
        captured = self.converted.classified.captured
        return dict(zip(captured.entry_names, captured.entry_nodes))

    @cached_property
    def main(self) -> list[str]:
        """Names of the attributed inputs on the map: the anatomy's input, and other embeddings of the same tokens."""
        own = self.inputs[self.anatomy.input]
        embedded = {declared.name for declared in self.converted.classified.captured.embedded}
        if self.anatomy.input not in embedded:
            return [self.anatomy.input]
        sums = {node for node in sums_of(own) if sizes_of(node) == sizes_of(own)}
        return [
            n
            for n in self.attributed
            if n in embedded and (sums & set(sums_of(self.inputs[n])) or n == self.anatomy.input)
        ]

    @cached_property
    def attributed(self) -> list[str]:
        """Names of the attributed inputs."""
        return [entry.name for entry in self.converted.classified.captured.entries if entry.attributed]

    def map_axes(self, name: str) -> list[int]:
        """The axes of an input that its map has, too: all but those of examples and channels."""
        gone = {self.anatomy.inputs.get(name), *self.anatomy.channels.get(name, ())}
        return [axis for axis in range(len(sizes_of(self.inputs[name]))) if axis not in gone]

    @cached_property
    def shared(self) -> list[str]:
        """Names of the attributed inputs that all examples share."""
        return [name for name in self.attributed if name not in self.anatomy.inputs]

    @cached_property
    def mixed(self) -> bool:
        """Whether some contribution cannot be split by example, so that examples must run one by one.

        This is so if a bias's contribution comes from its gradient, which is summed over the batch; if the axis of the
        examples is not known at a node; or if all examples share an input, or an output that the target reads.
        """
        return self.aim.shared != {} or inseparable(self.converted.classified, self.anatomy)

    @cached_property
    def reached(self) -> set[str]:
        """Names of the nodes and inputs that a cotangent of the target reaches."""
        return passed_by(self.ends, (), self._before)

    @cached_property
    def ends(self) -> list[str]:
        """Names of the output's nodes that the target has a cotangent for."""
        outputs: Any = self.converted.classified.captured.graph.output_node().args[0]
        return [n.name for n, g in zip(outputs, self.aim.cotangents) if g is not None and isinstance(n, fx.Node)]

    @cached_property
    def _before(self) -> dict[str, list[str]]:
        return handed_on(self.converted.classified.decisions)

    def blocks(self, method: str, complete: bool = False) -> list[Block]:
        """The blocks that a cotangent reaches; those that the user named, as they are.

        Args:
            method: the method's name.
            complete: whether to leave out blocks that some of what reaches the target passes by, if there are others.

        Raises:
            InputError: there are none.
        """
        found = list(self.anatomy.of_blocks(method))
        if self.anatomy.given:
            return found
        reached = [block for block in found if block.entry in self.reached]
        whole = [block for block in reached if self._separates(block.entry)] if complete else []
        return whole or reached or found

    def _separates(self, name: str) -> bool:
        """Whether all that comes before a node reaches the target through it only."""
        return not passed_by(self.ends, {name}, self._before) - self.behind(name)

    def behind(self, name: str | None = None) -> set[str]:
        """Names of all nodes that are not ancestors of `name`; of all nodes for None."""
        if name is None:
            return set(self.nodes)
        seen, pending = {name}, [self.nodes[name]]
        while pending:
            new = [n for n in pending.pop().all_input_nodes if n.name not in seen]
            seen |= {n.name for n in new}
            pending += new
        return set(self.nodes) - seen

    def layer_node(self, default: str) -> str:
        """Name of the node of the layer's output; `default` if no layer is asked for.

        Raises:
            InputError: as for `output_of`.
        """
        if self.layer is None:
            return default
        source = self.anatomy.input, self.inputs[self.anatomy.input]
        return output_of(self.layer, self.nodes, self.converted.classified.decisions, source)
