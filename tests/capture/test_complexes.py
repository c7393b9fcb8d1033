"""Complex numbers inside: bits of the model, gradients of plain autograd, completeness.

Re(conj(g) z) is what a complex value contributes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fft import irfft, irfft2, rfft, rfft2
from torch.utils import _pytree as pytree

import fxgrad

C = torch.complex128


class Spectral(nn.Module):
    """Something is done to a spectrum, and a head reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(9, dtype=C)), nn.Parameter(torch.randn(4, 2))
        self.o = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(irfft(self.filtered(rfft(x)), n=16))

    def filtered(self, f: Tensor) -> Tensor:
        return f * self.w


class Slice(Spectral):
    def filtered(self, f: Tensor) -> Tensor:
        out = torch.zeros_like(f)
        out[:, :4] = f[:, :4] * torch.view_as_complex(self.v)
        return out


class Select(Spectral):
    def filtered(self, f: Tensor) -> Tensor:
        out = f.clone()
        out[:, 2] = f[:, 3] * self.w[0]
        out[:, -1] = 1j
        return out


class Strided(Spectral):
    def filtered(self, f: Tensor) -> Tensor:
        out = f * 0.5
        out[..., 1:8:2] = f[:, torch.tensor([1, 3, 4, 0])] * self.w[:4]
        return out


class Conjugate(Spectral):
    """Parts that are lazily conjugated, on both sides of an assignment."""

    def filtered(self, f: Tensor) -> Tensor:
        out = f.conj()
        out[:, 1:7:2] = f[:, :3].conj() * 1
        out.conj()[:, 3:4] = f[:, 3:4]
        return out


class Parts(Spectral):
    def filtered(self, f: Tensor) -> Tensor:
        out = f.clone()
        out.real = out.real * 2
        out.imag[:, 2:4] = 0.5 * f.real[:, :2]
        return out


class Phases(Spectral):
    def filtered(self, f: Tensor) -> Tensor:
        return torch.polar(f.abs() + 0.1, f.angle()) * torch.exp(1j * f.real)


class Layer(Spectral):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(9, 9, dtype=C)

    def filtered(self, f: Tensor) -> Tensor:
        f = self.inner(f)
        return torch.complex(f.real.relu(), f.imag.relu()) * torch.sigmoid(f.abs())


class Operator(nn.Module):
    """A Fourier layer: low frequencies of both signs, mixed by complex weights, in a picture of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = (nn.Parameter(torch.randn(3, 3, 2, 2, dtype=C)) for _ in range(2))
        self.o = nn.Linear(108, 3)

    def forward(self, x: Tensor) -> Tensor:
        f, out = rfft2(x), torch.zeros(x.shape[0], 3, 6, 4, dtype=C)
        out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", f[:, :, :2, :2], self.low)
        out[:, :, -2:, :2] = torch.einsum("bixy,ioxy->boxy", f[:, :, -2:, :2], self.high)
        return self.o(irfft2(out, s=(6, 6)).flatten(1))


class Sound(nn.Module):
    """A spectrogram without its lowest frequencies, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(16, dtype=x.dtype)
        f = torch.stft(x, 16, 4, window=window, return_complex=True)
        out = f.clone()
        out[:, :3] = 0
        return self.o(torch.istft(out, 16, 4, window=window, length=64))


class Spectrum(Spectral):
    """Complex numbers out, beside real ones."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return rfft(x) * self.w, x.sin()


def made(build: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build().double().eval()
    shape = {Operator: (2, 3, 6, 6), Sound: (2, 64)}.get(build, (2, 16))
    return model, torch.randn(shape, dtype=torch.float64)


ALL = [Spectral, Slice, Select, Strided, Conjugate, Parts, Phases, Layer, Operator, Sound, Spectrum]


@pytest.mark.parametrize("build", ALL)
def test_bits_gradients_and_completeness(build: type[nn.Module]) -> None:
    model, x = made(build)
    libra = fxgrad.convert(model, (x,))
    with torch.no_grad():
        for ours, theirs in zip(pytree.tree_leaves(libra(x)), pytree.tree_leaves(model(x))):
            assert torch.equal(ours, theirs)
    z = x.clone().requires_grad_()
    wanted = pytree.tree_leaves(model(z))
    cotangents = [torch.randn_like(v) for v in wanted]
    plain = pytree.tree_leaves(libra.under("gradient")(z))
    ours, theirs = (torch.autograd.grad(outputs, z, cotangents)[0] for outputs in (plain, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed and report.completeness_error < 1e-10 and report.output != 0


def test_a_complex_output_is_checked() -> None:
    """Its real and imaginary parts are what is complete, so a wrong part of either would show."""
    model, x = made(Spectrum)
    libra = fxgrad.convert(model, (x,))
    v = torch.randn(2, 9, dtype=C)
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(libra(z)[0], z, v)
    report = fxgrad.check(libra, (x,), cotangent=(v, None))
    out = model(x)[0].detach()
    assert report.output == pytest.approx(float((v.real * out.real + v.imag * out.imag).sum()), rel=1e-12)
    assert report.inputs == pytest.approx(float((g * x).sum()), rel=1e-12) == pytest.approx(report.output, rel=1e-12)


def test_complex_weights_are_saved(tmp_path: Path) -> None:
    model, x = made(Operator)
    libra = fxgrad.convert(model, (x,))
    fxgrad.save(libra, tmp_path / "operator.pt2")
    again = fxgrad.load(tmp_path / "operator.pt2")
    assert torch.equal(again(x), libra(x)) and again.low.dtype == C
    assert fxgrad.check(again, (x,), original=model).passed


class Bent(Spectral):
    def filtered(self, f: Tensor) -> Tensor:
        return torch.tanh(f * self.w)


def test_a_bent_complex_number_is_refused_where_it_is() -> None:
    model, x = made(Bent)
    with pytest.raises(
        fxgrad.NoRuleError,
        match=r"aten\.tanh\.default at .*test_complexes\.py.* bends complex numbers.*torch\.view_as_real",
    ):
        fxgrad.convert(model, (x,))


class TakesComplex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(9, dtype=C))

    def forward(self, z: Tensor) -> Tensor:
        return (z * self.w).real


class TakesParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TakesComplex()

    def forward(self, parts: Tensor) -> Tensor:
        return self.inner(torch.view_as_complex(parts))


def test_a_complex_input_is_refused_and_the_way_out_works() -> None:
    z = torch.randn(2, 9, dtype=C)
    with pytest.raises(fxgrad.CaptureError, match=r"z is complex, .* takes torch\.view_as_real\(z\), and calls this"):
        fxgrad.convert(TakesComplex().eval(), (z,))
    model = TakesParts().eval()
    libra = fxgrad.convert(model, (torch.view_as_real(z),))
    assert fxgrad.check(libra, original=model).passed
