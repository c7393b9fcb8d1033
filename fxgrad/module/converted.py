"""What `convert` hands back: the rewritten program as a drop-in `torch.nn.Module`."""

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

    It owns parameters and buffers under the original's paths, so state_dict keys are the original's;
    they share memory with the original's until moved or cast, but are objects of their own, with the
    original's `requires_grad`. Attribution needs no parameter's gradient: `requires_grad_(False)` saves
    their cost. What the original calls as one of this class's attributes, such as a layer `embed`, keeps its path in
    the state_dict and among `named_modules()`; the attribute is this class's.

    Bit identity is to the original under `torch.no_grad()` with the same `requires_grad` flags: PyTorch picks
    kernels by them (matmul may fold its batch, attention may leave its fused kernel).

    Attributes:
        classified: the captured program, the rule table, and the decision for every node.
        program: the rewritten graph as a `torch.fx.GraphModule`; its placeholders are the state,
            then the inputs, then the embedded tokens.
        form: how it runs: "flat", or what `checkpointed` and `unflattened` return, called by their names.
        runner: what runs: the program itself, or the program in that form.
        lookup: from the state and the inputs to the embedded tokens; None for a model without token ids.

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
        """Which op got which rule, and why: printable, a table in notebooks, `.to_json()`."""
        return report(self.classified)

    def under(self, rules: Rules) -> ConvertedModule:
        """The same captured model under another policy, for comparison. Shares the tensors; nothing is exported again.

        Args:
            rules: as for `fxgrad.convert`; only its policy counts, the ops' rows stay as they are.

        Raises:
            NotBalanceableError: the other policy cannot balance the model.
            RuleTableError: the policy's file is malformed.

        Example:
            >>> import fxgrad, torch
            >>> libra = fxgrad.convert(torch.nn.GELU().eval(), (torch.zeros(2, 3),))
            >>> libra.under("gradient").report[0].rule
            'native'
        """
        return forms.under(self, rules)

    def checkpointed(self) -> ConvertedModule:
        """The same module, keeping nothing inside a block for the backward, but running it again there.

        A block is a part whose module path goes up to one number, as blocks.3 or model.layers.3. Less memory, grown
        with the number of blocks and not with what is inside, for about one more forward. Shares the tensors.

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
        """The same module, with submodules that are called: hooks on them, by the original's paths, find their layer.

        So captum's layer methods and pytorch-grad-cam run on it as on the original model. A submodule takes what its
        part of the program reads from outside, and returns what is read of it outside: a tensor, or a tuple of several.
        One that does nothing, as dropout, is not there; a second call of a module has @1 behind its path. Shares the
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
        """Look up the token ids among the inputs: the tensors that get attributed in their stead.

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
        """Run the rewritten program with these embedded tokens instead of those of the ids.

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
