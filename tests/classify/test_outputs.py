"""Outputs that cannot be balanced do not block the others; advice that is given works when it is followed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxgrad

LABELS = torch.tensor([2, 0, 1])


class Net(nn.Module):
    """A classifier with attention, whose outputs `ends` makes of its logits."""

    def __init__(self, ends: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.ends = ends
        self.qkv, self.last = nn.Linear(4, 12), nn.Linear(4, 3)
        self.register_buffer("table", torch.linspace(-1, 1, 15).reshape(3, 5))

    def weights(self, x: Tensor) -> Tensor:
        q, k, _ = self.qkv(x).chunk(3, -1)
        return (q @ k.mT / 2).softmax(-1)

    def logits(self, x: Tensor) -> Tensor:
        hidden = self.weights(x) @ self.qkv(x)[..., 8:]
        return self.last(F.gelu(hidden).mean(1))

    def forward(self, x: Tensor) -> Any:
        return self.ends(self, x)


def net(ends: Callable[[Net, Tensor], Any]) -> Net:
    torch.manual_seed(0)
    return Net(ends).double().eval()


def example() -> Tensor:
    return torch.linspace(-2, 2, 60, dtype=torch.float64).sin().reshape(3, 5, 4).requires_grad_()


def beside(made: Callable[[Tensor], Any]) -> Callable[[Net, Tensor], Any]:
    def ends(self: Net, x: Tensor) -> Any:
        logits = self.logits(x)
        return {"logits": logits, "other": made(logits)}

    return ends


PLAIN = net(lambda self, x: {"logits": self.logits(x)})

# Another output beside the logits, each of which was refused as a whole; and the name of an op to blame.
BESIDE: dict[str, tuple[Callable[[Net, Tensor], Any], str]] = {
    "probabilities": (beside(lambda z: z.softmax(-1)), "softmax"),
    "scaled and shifted": (beside(lambda z: 2 * z.softmax(-1)[:, :2] + 1), "softmax"),
    "log-probabilities": (beside(lambda z: z.log_softmax(-1)), "log_softmax"),
    "entropy": (beside(lambda z: -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)), "softmax"),
    "loss": (beside(lambda z: F.cross_entropy(z, LABELS[: len(z)])), "log_softmax"),
    "an added softmax": (beside(lambda z: z + z.softmax(-1)), "softmax"),
    "direction": (beside(lambda z: torch.atan2(z[:, 0], z[:, 1])), "atan2"),
    "no rule": (beside(lambda z: torch.special.bessel_j0(z)), "special_bessel_j0"),
    "expected": (lambda self, x: {"logits": (z := self.logits(x)), "other": z.softmax(-1) @ self.table}, "softmax"),
    "attention weights": (lambda self, x: {"logits": self.logits(x), "other": self.weights(x)}, "softmax"),
    "scores of attention": (
        lambda self, x: {"logits": self.logits(x), "other": torch.special.bessel_j0(self.weights(x))},
        "special_bessel_j0",
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_logits_are_what_they_are_in_the_model_that_returns_nothing_else(name: str) -> None:
    ends, op = BESIDE[name]
    model, x = net(ends), example()
    libra, witness = fxgrad.convert(model, (x,)), fxgrad.convert(PLAIN, (x,))
    outputs = libra(x)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs.values(), model(x).values()))
    (wanted,) = torch.autograd.grad(witness(x)["logits"][:, 1].sum(), x)
    assert torch.equal(torch.autograd.grad(outputs["logits"][:, 1].sum(), x, retain_graph=True)[0], wanted)

    def shared(module: fxgrad.ConvertedModule) -> list[Any]:
        live = [d for d in module.classified.decisions.values() if d.live]
        return [(d.op, d.kind, d.role, d.weights, d.backward.name) for d in live]

    assert shared(libra) == shared(witness), "what only the other output needs is held"
    # The other output: an error, whoever asks.
    refused = pytest.raises((fxgrad.NotBalanceableError, fxgrad.NoRuleError), match=rf"output\['other'\].*(.|\n)*{op}")
    with refused as caught:
        outputs["other"].sum().backward()
    assert "output['logits']" in str(caught.value) and "test_outputs.py:" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 12
    with refused:
        (libra(x)["other"].sum() + libra(x)["logits"].sum()).backward()
    if outputs["other"].dim():  # else it is of all examples together, which is no target
        with refused:
            fxgrad.attribute(libra, (x,), target=lambda y: y["other"].reshape(3, -1).sum(1))
    with refused:
        fxgrad.vjp(libra, (x,), {"logits": None, "other": torch.ones(2, *outputs["other"].shape).double()})
    with refused:
        fxgrad.check(libra, (x,), cotangent={"logits": None, "other": torch.ones_like(outputs["other"])})


def test_the_others_are_proved_and_the_reports_name_what_is_left_out() -> None:
    model, x = net(BESIDE["probabilities"][0]), example()
    libra = fxgrad.convert(model, (x,))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-14 and report.left_out == ("output['other']",)
    assert json.loads(report.to_json())["left_out"] == ["output['other']"]
    assert "left out, since it cannot be balanced: output['other']" in str(report)
    assert "Without a balanced gradient, report.details() says why: output['other']" in str(libra.report)
    assert "output['other'] has no balanced gradient: under libragrad, 1 op(s) can only" in libra.report.details()
    assert "output[&#x27;other&#x27;]" in libra.report._repr_html_()
    gradients = fxgrad.vjp(libra, (x,), {"logits": torch.ones(2, 3, 3).double(), "other": None}).gradients["x"]
    wanted = torch.autograd.grad(libra(x)["logits"].sum(), x)[0]
    torch.testing.assert_close(gradients[1], wanted)
    found = fxgrad.attribute(libra, (x,), target=torch.tensor([1, 0, 2]))
    assert found.completeness_error < 1e-12
    assert fxgrad.check(fxgrad.convert(PLAIN, (x,)), (x,)).left_out == ()


def test_it_is_kept_in_every_form(tmp_path: Path) -> None:
    x = example()
    libra = fxgrad.convert(net(BESIDE["probabilities"][0]), (x,))
    (wanted,) = torch.autograd.grad(libra(x)["logits"].sum(), x)
    fxgrad.save(libra, tmp_path / "libra.pt2")
    loaded = fxgrad.load(tmp_path / "libra.pt2")
    assert loaded.classified.refusals == libra.classified.refusals
    for other in (loaded, pickle.loads(pickle.dumps(libra)), libra.unflattened(), libra.under("libragrad")):
        assert torch.equal(torch.autograd.grad(other(x)["logits"].sum(), x)[0], wanted)
        with pytest.raises(fxgrad.NotBalanceableError, match=r"^output\['other'\] has no balanced gradient"):
            other(x)["other"].sum().backward()
    assert libra.under("attnlrp").classified.refusals == ()
    fxgrad.export_explainer(libra, (x.detach(),), tmp_path / "explainer.pt2", output="logits")
    with pytest.raises(fxgrad.NotBalanceableError, match=r"^output\['other'\] has no balanced gradient"):
        fxgrad.export_explainer(libra, (x.detach(),), tmp_path / "never.pt2", output="other")


def test_compiled_code_cannot_raise_and_gives_nan() -> None:
    x = example()
    libra = fxgrad.convert(net(BESIDE["probabilities"][0]), (x,))
    compiled = torch.compile(libra, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(libra(x)["logits"].sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(x)["logits"].sum(), x)[0], wanted)
    outputs = compiled(x)
    assert torch.autograd.grad(outputs["logits"].sum() + outputs["other"].sum(), x)[0].isnan().all()


def test_functions_of_torch() -> None:
    x = example()
    libra = fxgrad.convert(net(BESIDE["probabilities"][0]), (x,))
    jacobian = torch.func.jacrev(lambda v: libra(v)["logits"].sum(0))(x)
    for row, logit in zip(jacobian, range(3)):
        torch.testing.assert_close(row, torch.autograd.grad(libra(x)["logits"][:, logit].sum(), x)[0])
    with pytest.raises(fxgrad.NotBalanceableError, match="has no balanced gradient"):
        torch.func.jacrev(lambda v: libra(v)["other"].sum(0))(x)


class Following:
    """A message, and what its advice was."""

    def __init__(self, ends: Callable[[Net, Tensor], Any], **options: Any) -> None:
        with pytest.raises(fxgrad.FxgradError) as caught:
            fxgrad.convert(net(ends), (example(),), **options)
        self.message = str(caught.value)
        assert len(self.message.splitlines()) < 12 and "without its last softmax" not in self.message

    def native(self, ends: Callable[[Net, Tensor], Any], kind: str, folder: Path, **options: Any) -> None:
        """Follow: a policy that leaves a kind as it is; the gradient is PyTorch's, and check says what is missing."""
        assert f'base = "libragrad" and, under [backward], {kind} = "native"' in self.message
        (folder / "mine.toml").write_text(f'base = "libragrad"\n[backward]\n{kind} = "native"\n')
        libra = fxgrad.convert(net(ends), (example(),), rules=folder / "mine.toml", **options)
        assert not fxgrad.check(libra).passed

    def returned(self, ends: Callable[[Net, Tensor], Any], what: str) -> None:
        """Follow: another value that the model should return."""
        assert f"Let the model return {what}" in self.message
        report = fxgrad.check(fxgrad.convert(net(ends), (example(),)))
        assert report.passed and report.completeness_error < 1e-13


def test_advice_where_the_output_is_a_softmax(tmp_path: Path) -> None:
    def ends(self: Net, x: Tensor) -> Tensor:
        return self.logits(x).softmax(-1)

    found = Following(ends)
    assert "reaches the output by softmax_1\n    the output is that itself" in found.message
    assert "(aten.linear.default at last, test_outputs.py:" in found.message
    found.returned(Net.logits, "linear_2 (aten.linear.default at last")
    found.native(ends, "softmax", tmp_path)


def test_advice_where_it_is_added(tmp_path: Path) -> None:
    def ends(self: Net, x: Tensor) -> Tensor:
        z = self.logits(x)
        return (z + z.softmax(-1)) @ self.table

    found = Following(ends)
    assert "it is added to what carries in add" in found.message and "test_outputs.py:" in found.message
    found.returned(Net.logits, "linear_2 (")
    found.native(ends, "softmax", tmp_path)


def test_advice_where_it_lies_beside_in_one_tensor() -> None:
    found = Following(lambda self, x: torch.cat([z := self.logits(x), z.softmax(-1)], 1))
    assert "it lies beside what carries in one tensor, cat, by aten.cat.default at the model itself" in found.message
    assert "Let the model return the joined parts as a tuple" in found.message
    libra = fxgrad.convert(net(lambda self, x: (z := self.logits(x), z.softmax(-1))), (example(),))
    assert fxgrad.check(libra).passed and [r.output for r in libra.classified.refusals] == ["output[1]"]


def test_advice_where_it_is_mixed_after_a_join_is_not_to_take_the_join_apart() -> None:
    found = Following(lambda self, x: torch.cat([z := self.logits(x), z.softmax(-1)], 1) @ torch.ones(6, 2).double())
    assert "it lies beside" in found.message and "as a tuple" not in found.message


def test_advice_where_nothing_upstream_carries(tmp_path: Path) -> None:
    found = Following(lambda self, x: x.softmax(-1))
    assert "Let the model return" not in found.message
    found.native(lambda self, x: x.softmax(-1), "softmax", tmp_path)


def test_advice_where_a_gate_of_two_is_returned(tmp_path: Path) -> None:
    def ends(self: Net, x: Tensor) -> Tensor:
        z = self.logits(x)
        return torch.atan2(z[:, 0], z[:, 1])

    found = Following(ends)
    found.returned(lambda self, x: self.logits(x)[:, 0], "select")
    found.native(ends, "gate", tmp_path)


def test_advice_for_a_loss_alone_is_about_its_softmax(tmp_path: Path) -> None:
    def ends(self: Net, x: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(x), LABELS[: len(x)])

    found = Following(ends)
    assert "has no row" not in found.message and "on_unknown" not in found.message
    found.native(ends, "softmax", tmp_path)
    found.returned(Net.logits, "linear_2 (")


def test_advice_skips_the_row_that_would_not_help(tmp_path: Path) -> None:
    """An op has no row; the row that it looks like would lead to the next refusal, so that one comes at once."""

    def ends(self: Net, x: Tensor) -> Tensor:
        logits = self.logits(x)
        best = F.pad(logits.argmax(-1, keepdim=True), (0, logits.shape[-1] - 1), value=-1)
        return F.multilabel_margin_loss(logits.softmax(-1), best)

    found = Following(ends)
    assert "(aten.multilabel_margin_loss_forward.default without a row: with one, that would remain)" in found.message
    assert "pass on_unknown" in found.message and "loss_forward.default has no row" not in found.message
    found.native(ends, "softmax", tmp_path, on_unknown="native")
    found.returned(Net.logits, "linear_2 (")


def test_advice_of_a_row_that_would_not_help_says_so() -> None:
    """digamma looks like a gate, which could only multiply; but it is returned."""
    found = Following(lambda self, x: torch.digamma(self.logits(x)))
    assert "looks like gate" in found.message
    assert "but a gate can only multiply, and this one reaches an output otherwise" in found.message
    assert 'on_unknown="native"' in found.message
    libra = fxgrad.convert(net(lambda self, x: torch.digamma(self.logits(x))), (example(),), on_unknown="native")
    assert not fxgrad.check(libra).passed


def test_ops_without_a_rule_block_only_what_depends_on_them() -> None:
    def ends(self: Net, x: Tensor) -> Any:
        z = self.logits(x)
        return z, torch.special.bessel_j0(z), z * torch.special.bessel_j0(z)

    libra = fxgrad.convert(net(ends), (example(),))
    assert [(r.output, r.error) for r in libra.classified.refusals] == [
        ("output[1]", "NoRuleError"),
        ("output[2]", "NoRuleError"),
    ]
    assert '"aten.special_bessel_j0" = { carrier = "self", secant = true }' in libra.classified.refusals[0].message
    assert "Or attribute output[0], which does without." in libra.classified.refusals[1].message


def test_all_outputs_together_are_refused_at_once() -> None:
    found = Following(lambda self, x: (z := self.logits(x).softmax(-1), z.square()))
    assert (
        "1 op(s) can only multiply" in found.message and "but reach output[0] and output[1] otherwise" in found.message
    )
