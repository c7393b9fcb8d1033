"""Which modules of a model repeat: a module list's items, and modules of one type that one parent numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from torch import fx

_LEAST = 2
"""The smallest number of ops in a repeated module, other than a list's item: less is a layer."""


class Siblings:
    """The repeated modules among those that a graph's nodes belong to.

    Args:
        nodes: the nodes to look at.

    Example:
        >>> import torch
        >>> class Layers(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.step_0, self.step_1 = (torch.nn.TransformerEncoderLayer(2, 1, 2) for _ in range(2))
        ...         self.head = torch.nn.Sequential(torch.nn.Linear(2, 2))
        ...
        ...     def forward(self, x):
        ...         return self.head(self.step_1(self.step_0(x)))
        >>> nodes = torch.export.export(Layers(), (torch.ones(3, 1, 2),)).graph.nodes
        >>> found = Siblings(nodes)
        >>> found.of("step_1"), found.of("head.0"), found.of("head")
        ('step_1', 'head.0', '')
    """

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        types: dict[str, str] = {}
        self.size: Counter[str] = Counter()
        for node in nodes:
            stack = node.meta.get("nn_module_stack") or {}
            own = {str(path).partition("@")[0]: str(kind) for path, kind in stack.values()}
            types |= own
            self.size.update(own.keys())
        self.alike: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self.key: dict[str, tuple[str, str, str]] = {}
        for path, kind in types.items():
            parent, _, name = path.rpartition(".")
            if (match := re.fullmatch(r"(.*?)\d+", name)) and "torch.nn.modules.container" not in kind:
                self.key[path] = (parent, match[1], kind)
                self.alike[self.key[path]].add(path)

    def of(self, path: str, but: Collection[str] = ()) -> str:
        """The outermost repeated module that a module belongs to, itself included; "" for none.

        An item of the model's own sequence counts only if others are of its type, or nothing inside of it repeats.

        Args:
            path: the module's path.
            but: paths that do not count.
        """
        names = path.split(".")
        prefixes = (".".join(names[: i + 1]) for i in range(len(names)))
        found = [p for p in prefixes if p not in but and (_item(p) or self.repeated(p))]
        if len(found) > 1 and found[0].isdecimal() and not self.repeated(found[0]):
            return found[1]  # a sequence of unlike parts, one of which has the blocks
        return found[0] if found else ""

    def repeated(self, path: str) -> bool:
        """Whether a module has siblings of its type, numbered by the same name."""
        alike = self.alike[self.key[path]] if path in self.key else set()
        return len(alike) > 1 and all(self.size[p] >= _LEAST for p in alike)

    def named(self, paths: Iterable[str]) -> list[str]:
        """Those of some repeated modules that are no items of a list."""
        return [path for path in paths if path and not _item(path)]


def _item(path: str) -> bool:
    return path.rpartition(".")[2].isdecimal()
