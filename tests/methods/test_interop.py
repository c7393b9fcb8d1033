"""captum and pytorch-grad-cam, unchanged, on converted modules: they find their layers, and agree with `fxgrad.attribute`."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from captum.attr import (
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    LLMGradientAttribution,
    Saliency,
    TextTokenInput,
)
from torch import Tensor, nn

import fxgrad
from fxgrad.methods import Finer
from tests.helpers import balanced_vit, language_models
from tests.helpers.balanced_vit import GRID

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_grad_cam import FinerCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM

TARGET = 3
POLICIES = ["libragrad", "gradient"]


class ConvNet(nn.Module):
    """Two blocks of convolutions with a norm and a GELU, and a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU()) for _ in range(2)
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = x + stage(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def vit() -> tuple[nn.Module, Tensor, fxgrad.ConvertedModule]:
    model, x = balanced_vit.vit()
    return model, x, fxgrad.convert(model, (x,))


@pytest.fixture(scope="module")
def convnet() -> tuple[nn.Module, Tensor, fxgrad.ConvertedModule]:
    torch.manual_seed(0)
    model, x = ConvNet().double().eval(), torch.randn(2, 3, 12, 12).double()
    return model, x, fxgrad.convert(model, (x,))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("which", ["vit", "convnet"])
def test_captum_s_input_methods(which: str, policy: str, request: pytest.FixtureRequest) -> None:
    _, x, libra = request.getfixturevalue(which)
    module = libra.under(policy)
    ours = {m: fxgrad.attribute(module, (x,), target=TARGET, method=m).map for m in ("saliency", "input_x_gradient")}
    leaf = x.clone().requires_grad_()
    assert torch.allclose(Saliency(module).attribute(leaf, target=TARGET).amax(1), ours["saliency"], rtol=1e-12)
    products = InputXGradient(module).attribute(leaf, target=TARGET).sum(1)
    assert torch.allclose(products, ours["input_x_gradient"], rtol=1e-12, atol=1e-14)


def test_captum_s_integrated_gradients(vit: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = vit
    plain = libra.under("gradient")
    start = torch.full_like(x, 0.5)
    theirs, delta = IntegratedGradients(plain).attribute(
        x, start, target=TARGET, n_steps=20, return_convergence_delta=True
    )
    ours = fxgrad.attribute(plain, (x,), target=TARGET, method="integrated_gradients", n_steps=20, baseline=0.5)
    assert torch.allclose(ours.map, theirs.sum(1), rtol=1e-10, atol=1e-13)
    assert ours.total is not None
    assert torch.allclose(ours.total - ours.output, delta, rtol=1e-6, atol=1e-9)


def test_smoothgrad_without_noise_is_the_gradient(vit: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = vit
    quiet = fxgrad.attribute(libra, (x,), target=TARGET, method="smoothgrad", samples=2, noise=0.0)
    gradient = fxgrad.attribute(libra, (x,), target=TARGET, method="gradient")
    assert torch.allclose(quiet.map, gradient.map, rtol=1e-10, atol=1e-13)
    noisy = [
        fxgrad.attribute(libra, (x,), target=TARGET, method="smoothgrad", samples=2, seed=s).map for s in (0, 0, 1)
    ]
    assert torch.equal(noisy[0], noisy[1]) and not torch.allclose(noisy[0], noisy[2])


@pytest.mark.parametrize("policy", POLICIES)
def test_captum_s_layer_methods(policy: str, convnet: tuple) -> None:  # type: ignore[type-arg]
    model, x, libra = convnet
    module = libra.under(policy).unflattened()
    layer = module.get_submodule("stages.1")
    activation = LayerActivation(module, layer).attribute(x)
    assert torch.allclose(activation, LayerActivation(model, model.stages[1]).attribute(x), rtol=1e-12)
    theirs = LayerGradCam(module, layer).attribute(x, target=TARGET)[:, 0]
    ours = fxgrad.attribute(libra.under(policy), (x,), target=TARGET, method="gradcam_plus", layer="stages.1")
    assert torch.allclose(theirs, ours.patches, rtol=1e-11, atol=1e-14)


def test_layer_methods_find_the_plain_model_s_gradient(convnet: tuple) -> None:  # type: ignore[type-arg]
    model, x, libra = convnet
    plain = libra.under("gradient").unflattened()
    for name in ("stem", "stages.0", "stages.1.1"):
        theirs = LayerGradCam(model, model.get_submodule(name)).attribute(x, target=TARGET)
        assert torch.allclose(LayerGradCam(plain, plain.get_submodule(name)).attribute(x, target=TARGET), theirs)


def loud(logits: Tensor) -> Tensor:
    """The logit, so large that what pytorch-grad-cam adds to denominators is nothing."""
    return 1e6 * logits[TARGET]


def louder(logits: Tensor) -> Tensor:
    """The same of each example. Grad-CAM++ depends on the scale."""
    return 1e6 * logits[:, TARGET]


def tokens_last(value: Tensor) -> Tensor:
    return value[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))


def scaled(maps: Tensor) -> Tensor:
    """As pytorch-grad-cam returns them: from 0 to 1."""
    low = maps.relu() - maps.relu().amin((1, 2), keepdim=True)
    return low / low.amax((1, 2), keepdim=True)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(GradCAM, "gradcam"), (HiResCAM, "hirescam"), (LayerCAM, "layercam"), (GradCAMPlusPlus, "gradcam_plusplus")],
)
def test_grad_cam_on_a_transformer(theirs: type, ours: str, policy: str, vit: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = vit
    module = libra.under(policy).unflattened()
    with theirs(module, [module.get_submodule("blocks.0")], reshape_transform=tokens_last) as cam:
        found = torch.from_numpy(cam(x, [loud] * 2))
    wanted = fxgrad.attribute(libra.under(policy), (x,), target=louder, method=ours, layer="blocks.0")
    # The output of block 0 is the input of the last one, the default.
    default = fxgrad.attribute(libra.under(policy), (x,), target=louder, method=ours)
    assert torch.equal(wanted.patches, default.patches)
    coarse = found.reshape(2, GRID, 3, GRID, 3)[:, :, 1, :, 1]  # bilinear: exact at the patches' centres
    assert torch.allclose(scaled(coarse), scaled(wanted.patches).to(coarse), atol=1e-4)


@pytest.mark.parametrize("theirs", [GradCAM, HiResCAM])
def test_grad_cam_on_a_convolutional_net(theirs: type, convnet: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = convnet
    module = libra.unflattened()
    with theirs(module, [module.get_submodule("stages.0")]) as cam:
        found = torch.from_numpy(cam(x, [loud] * 2))
    name = {GradCAM: "gradcam", HiResCAM: "hirescam"}[theirs]
    wanted = fxgrad.attribute(libra, (x,), target=TARGET, method=name, layer="stages.0")
    assert found.shape == (2, 12, 12) and wanted.patches.shape == (2, 6, 6)
    by_hand = nn.functional.interpolate(scaled(wanted.patches)[:, None], (12, 12), mode="bilinear")[:, 0]
    assert torch.corrcoef(torch.stack([found.flatten().double(), by_hand.flatten()]))[0, 1] > 0.999


@pytest.mark.parametrize("policy", POLICIES)
def test_finer_cam_is_grad_cam_of_a_finer_target(policy: str, vit: tuple) -> None:  # type: ignore[type-arg]
    """With one other class; of several, theirs weighs each by its probability, which has a gradient, too."""
    _, x, libra = vit
    module = libra.under(policy).unflattened()
    x = x[:1]
    with FinerCAM(module, [module.get_submodule("blocks.0")], reshape_transform=tokens_last) as cam:
        found = torch.from_numpy(cam(x, alpha=0.6, comparison_categories=[1], target_idx=TARGET))
    finer = Finer(TARGET, others=1, gamma=0.6)
    wanted = fxgrad.attribute(libra.under(policy), (x,), target=finer, method="gradcam", layer="blocks.0")
    coarse = found.reshape(1, GRID, 3, GRID, 3)[:, :, 1, :, 1]
    assert torch.allclose(scaled(coarse), scaled(wanted.patches).to(coarse), atol=1e-4)
    assert wanted.label == f"class {TARGET} over the nearest"


@pytest.mark.parametrize("which", ["vit", "convnet"])
def test_called_as_modules_it_is_the_same(which: str, request: pytest.FixtureRequest) -> None:
    model, x, libra = request.getfixturevalue(which)
    module = libra.unflattened()
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [m(leaf) for m, leaf in zip((libra, module), leaves)]
    assert torch.equal(*outputs)
    assert torch.equal(*(torch.autograd.grad(y[:, 1].sum(), leaf)[0] for y, leaf in zip(outputs, leaves)))
    assert list(module.state_dict()) == list(model.state_dict())
    assert [p.data_ptr() for p in module.parameters()] == [p.data_ptr() for p in libra.parameters()]
    assert torch.equal(copy.deepcopy(module)(x), outputs[0])
    coarse = [copy.deepcopy(m).float()(x.float()) for m in (libra, module)]
    assert coarse[0].dtype is torch.float32 and torch.equal(*coarse)


def test_hooks_see_the_layers_values_and_may_change_them(vit: tuple) -> None:  # type: ignore[type-arg]
    model, x, libra = vit
    module = libra.unflattened()
    seen: dict[str, list[Tensor]] = {}
    for name in ("blocks.0", "blocks.1.norm2", "blocks.1.fc2", "head"):
        for net, key in ((model, f"model {name}"), (module, name)):
            net.get_submodule(name).register_forward_hook(lambda m, i, o, key=key: seen.update({key: [*i, o]}))
    module(x), model(x)
    for name in ("blocks.0", "blocks.1.norm2", "blocks.1.fc2", "head"):
        for ours, theirs in zip(seen[name], seen[f"model {name}"], strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    module.get_submodule("blocks.1").register_forward_hook(lambda m, i, o: torch.zeros_like(o))
    module.get_submodule("head").register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    wanted = model.head(model.norm(torch.zeros(2, 17, 8).double())[:, 0] + 1)
    assert torch.allclose(module(x), wanted)


def test_a_part_runs_only_in_the_whole(vit: tuple) -> None:  # type: ignore[type-arg]
    _, x, libra = vit
    module = libra.unflattened()
    module(x)
    with pytest.raises(fxgrad.InputError, match=r"blocks.1.norm2 runs only as a part of the whole module"):
        module.get_submodule("blocks.1.norm2")(torch.zeros(2, 17, 8).double())


def test_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())

    x = torch.randn(2, 4)
    libra = fxgrad.convert(Twice().eval(), (x,))
    module = libra.unflattened()
    assert {"layer", "layer@1"} <= {name for name, _ in module.named_modules()}
    assert torch.equal(module(x), libra(x)) and list(module.state_dict()) == ["layer.weight", "layer.bias"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("policy", POLICIES)
def test_language_models_under_captum(name: str, policy: str) -> None:
    """captum goes through an answer token by token, and wants the module of the embedding."""
    tokenizer, model = language_models.tokenizer(), language_models.model(name).requires_grad_(True)
    ids, answer = (torch.tensor(tokenizer(text)["input_ids"]) for text in ("the sky is", " blue red"))
    libra = fxgrad.convert(model, (ids.expand(2, -1),), rules=policy)
    module = libra.unflattened()
    layer = module.get_submodule("model.embed_tokens" if name == "llama" else "transformer.wte")
    whole = LLMGradientAttribution(LayerGradientXActivation(module, layer), tokenizer)
    theirs = whole.attribute(TextTokenInput("the sky is", tokenizer), target=" blue red").token_attr
    for at, token in enumerate(answer):
        given = torch.cat([ids, answer[:at]])[None]
        ours = fxgrad.attribute(libra, (given,), target=lambda out, t=token: out.logits[:, -1].log_softmax(-1)[:, t])
        assert torch.allclose(theirs[at], ours.map[0, : len(ids)], rtol=0, atol=1e-9)


def test_integrated_gradients_of_an_embedding_by_captum() -> None:
    """What a hook puts in the place of an embedding's output is what the program goes on with."""
    model = (
        nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 6), nn.GELU(), nn.Linear(6, 2)).double().eval()
    )
    ids = torch.tensor([[1, 5, 2], [3, 0, 8]])
    libra = fxgrad.convert(model, (ids,), rules="gradient")
    module, baseline = libra.unflattened(), torch.zeros_like(ids)
    layer = module.get_submodule("0")
    theirs = LayerIntegratedGradients(module, layer).attribute(
        ids, baseline, target=1, n_steps=8, internal_batch_size=None
    )
    plain = LayerIntegratedGradients(model, model[0]).attribute(ids, baseline, target=1, n_steps=8)
    assert torch.allclose(theirs, plain, rtol=0, atol=1e-12)
    assert torch.equal(module(ids), model(ids))
