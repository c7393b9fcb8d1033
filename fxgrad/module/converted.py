"""The result of `convert`: the rewritten program as a drop-in `torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxgrad.errors import InputError
from fxgrad.module import forms
from fxgrad.module.core import Core
from fxgrad.ops.weights import HELD, NATIVE
from fxgrad.report import Report, report
from fxgrad.table.loading import Rules


class ConvertedModule(Core):
    """A model whose outputs are the original's, bit for bit, and whose gradients are the policy's.

    It has its own parameters and buffers under the original's paths, with the original's `requires_grad`, so
    state_dict keys are the original's. They share memory with the original's until moved or cast. Attribution needs no
    parameter's gradient: `requires_grad_(False)` saves its cost. If a layer of the original has the name of an
    attribute of this class, such as `embed`, it keeps its path in the state_dict and in `named_modules()`, but the
    attribute is this class's.

    Outputs equal the original's bit for bit under `torch.no_grad()` with the same `requires_grad` flags, since PyTorch
    picks kernels by these (matmul may fold its batch, attention may leave its fused kernel).

    Attributes:
        classified: the captured program, the rule table, and the decision for every node.
        program: the rewritten graph as a `torch.fx.GraphModule`; its placeholders are the state,
            then the inputs, then the embedded tokens.
        form: "flat", "checkpointed" or "unflattened".
        runner: the module that runs: the program itself, or the program in that form.
        lookup: maps the state and the inputs to the embedded tokens; None for a model without token ids.

    Example:
        >>> import fxgrad, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
        >>> x = torch.randn(5, 3, requires_grad=True)
        >>> libra = fxgrad.convert(model, (x,))
        >>> torch.equal(libra(x), model(x)), list(libra.state_dict()) == list(model.state_dict())
        (True, True)
    """

    @property
    def report(self) -> Report:
        """A table of every node's kind and backward, and why: printable, HTML in notebooks, `.to_json()`."""
        return report(self.classified)

    def under(self, rules: Rules, **parameters: float) -> ConvertedModule:
        """The same captured model under another policy. Shares the tensors; nothing is exported again.

        Args:
            rules: as for `fxgrad.convert`; only the policy is used, the rows stay as they are.
            **parameters: parameters of the policy's backwards, instead of the file's: `under("gamma", gamma=0.5)` is
                `under("gamma (gamma = 0.5)")`. Every backward that has the parameter gets it.

        Raises:
            NoRuleError: the policy has a rule for layers, and a layer's weights are packed.
            NotBalanceableError: the other policy cannot balance the model.
            RuleTableError: the policy's file is malformed, or it has no such parameter.

        Example:
            >>> import fxgrad, torch
            >>> libra = fxgrad.convert(torch.nn.GELU().eval(), (torch.zeros(2, 3),))
            >>> libra.under("gradient").report[0].rule
            'native'
        """
        return forms.under(self, rules, parameters)

    def checkpointed(self) -> ConvertedModule:
        """The same module with activation checkpointing: the backward pass runs each block again.

        A block is a module whose path ends in its first number, such as blocks.3 or model.layers.3. Values inside a
        block are not kept, so memory grows with the number of blocks only; it costs about one more forward. Shares the
        tensors.

        Raises:
            InputError: the model has no numbered blocks.

        Example:
            >>> import fxgrad, torch
            >>> from torch import nn
            >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))).eval()
            >>> x = torch.randn(2, 8, requires_grad=True)
            >>> libra = fxgrad.convert(model, (x,))
            >>> (wanted,) = torch.autograd.grad(libra(x).sum(), x)
            >>> torch.equal(torch.autograd.grad(libra.checkpointed()(x).sum(), x)[0], wanted)
            True

        Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
        """
        return forms.checkpointed(self)

    def unflattened(self) -> ConvertedModule:
        """The same module, with submodules that are called under the original's paths, so that hooks work.

        So captum's layer methods and pytorch-grad-cam run on it as on the original model. A submodule takes the tensors
        that its part of the program reads, and returns those that other parts read: a tensor, or a tuple of several.
        Modules that do nothing, such as dropout, are absent; a second call of a module has the path and @1. Shares the
        tensors.

        Example:
            >>> import fxgrad, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
            >>> libra = fxgrad.convert(model, (torch.zeros(2, 3),)).unflattened()
            >>> seen = []
            >>> hook = libra.get_submodule("1").register_forward_hook(lambda *call: seen.append(call[-1]))
            >>> x = torch.randn(2, 3)
            >>> y = libra(x)
            >>> torch.equal(seen[0], model[:2](x))
            True
        """
        return forms.unflattened(self)

    def embed(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Look up the token ids among the inputs: the embedded tokens, which are attributed instead of the ids.

        Args:
            *args, **kwargs: as the original model takes them.

        Returns:
            The module path of each embedding -> its output, (batch, tokens, width), each a leaf that requires a
            gradient. Empty for a model without token ids.

        Raises:
            InputError: inputs of another structure, shape or dtype than the captured ones.

        Example:
            >>> import fxgrad, torch
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2, bias=False)).eval()
            >>> ids = torch.tensor([[1, 5, 2]])
            >>> libra = fxgrad.convert(model, (ids,))
            >>> tokens = libra.embed(ids)
            >>> libra.forward_from(tokens, ids)[0, 1].backward()
            >>> attribution = {name: (x * x.grad).sum(-1) for name, x in tokens.items()}
            >>> attribution["0"].shape, torch.allclose(attribution["0"].sum(), model(ids)[0, 1])
            (torch.Size([1, 3]), True)
        """
        captured = self.classified.captured
        with torch.no_grad():
            found = self.entries(args, kwargs)[len(captured.inputs) :]
        return {i.name: tokens.detach().requires_grad_() for i, tokens in zip(captured.embedded, found)}

    def forward_from(self, embedded: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Run the rewritten program with these embedded tokens instead of looking up the ids.

        Args:
            embedded: what `embed` returned, or other tensors of the same shapes.
            *args, **kwargs: as the original model takes them; their token ids are not looked up.

        Returns:
            What the original model returns, in the same structure.

        Raises:
            InputError: other names or shapes than `embed` returns, or inputs that the module does not take.
        """
        captured = self.classified.captured
        names = [i.name for i in captured.embedded]
        if set(embedded) != set(names):
            raise InputError(
                f"embedded tokens are wanted for {', '.join(names) or 'nothing'}, given for "
                f"{', '.join(embedded) or 'nothing'}. Pass what embed() returns."
            )
        for declared in captured.embedded:
            declared.check(embedded[declared.name])
        return self.run(captured.flatten(args, kwargs) + [embedded[name] for name in names])

    def __repr__(self) -> str:
        captured, decisions = self.classified.captured, self.classified.decisions
        rewritten = sum(d.backward not in (NATIVE, HELD) for d in decisions.values())
        inputs = ", ".join(i.name for i in captured.entries if i.attributed)
        return (
            f"ConvertedModule(rules={self.classified.table.name!r}, attributed inputs: {inputs}; "
            f"{len(decisions)} nodes depend on them, {rewritten} rewritten)"
        )
