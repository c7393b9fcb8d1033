"""Quantised layers of bitsandbytes and torchao, and adapters of peft; each where the package is installed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxgrad

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages warn about themselves
X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 32)).eval()


def gradient(f: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x)[:, 1].sum(), x)[0]


def saved_and_loaded(libra: Any, folder: Path) -> Any:
    fxgrad.save(libra, folder / "libra.pt2")
    return fxgrad.load(folder / "libra.pt2")


def assert_proved(model: nn.Module, folder: Path, x: Tensor = X) -> Any:
    """The original's bits, complete, and the same after saving; returns the converted module."""
    libra = fxgrad.convert(model, (x,))
    report = fxgrad.check(libra, (x,), original=model)
    assert report.passed, report
    with torch.no_grad():
        assert torch.equal(libra(x[:1]), model(x[:1]))
    loaded = saved_and_loaded(libra, folder)
    assert torch.equal(loaded(x), libra(x)) and torch.equal(gradient(loaded, x), gradient(libra, x))
    assert set(loaded.state_dict()) == set(libra.state_dict())
    return libra


def torchao_configs() -> dict[str, Any]:
    from torchao import quantization as q

    return {
        "int8": q.Int8WeightOnlyConfig(),
        "int8 in groups": q.Int8WeightOnlyConfig(granularity=q.PerGroup(32)),
        "int4": q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=q.PerGroup(32)),
        "int2": q.IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=q.PerAxis(0)),
        "float8": q.Float8WeightOnlyConfig(),
    }


@pytest.mark.parametrize("name", ["int8", "int8 in groups", "int4", "int2", "float8"])
def test_weights_of_torchao(name: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = net()
    quantization.quantize_(model, torchao_configs()[name])
    libra = assert_proved(model, tmp_path)
    for layer in (model[0], model[3]):
        layer.weight = nn.Parameter(layer.weight.dequantize())
    wanted = gradient(fxgrad.convert(model, (X,)), X)
    assert torch.allclose(gradient(libra, X), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qint8", "qint4", "qfloat8"])
def test_weights_of_quanto(name: str, tmp_path: Path) -> None:
    """A tensor class whose weight of integers says that it requires a gradient, and a kernel without a derivative."""
    quanto = pytest.importorskip("optimum.quanto")
    model = net()
    quanto.quantize(model, weights=getattr(quanto, name))
    quanto.freeze(model)
    libra = assert_proved(model.eval(), tmp_path)
    plain = net()
    for i in (0, 3):
        plain[i].weight.data = model[i].weight.dequantize().detach()
    wanted = gradient(fxgrad.convert(plain, (X,)), X)
    assert torch.allclose(gradient(libra, X), wanted, rtol=1e-4, atol=1e-5)


def test_a_tied_weight_of_torchao(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = net()
    model[0].bias = None
    quantization.quantize_(model[0], quantization.Int8WeightOnlyConfig())
    tied = nn.Linear(64, 64, bias=False)
    tied.weight = model[0].weight
    assert_proved(nn.Sequential(model, nn.Linear(32, 64), tied).eval(), tmp_path)


@pytest.mark.parametrize("name", ["Int8DynamicActivationInt8WeightConfig", "Int8DynamicActivationIntxWeightConfig"])
def test_activations_of_torchao_are_refused_and_the_advice_works(name: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = net()
    quantization.quantize_(model, getattr(quantization, name)())
    with pytest.raises(fxgrad.CaptureError, match=r"(?s)quantises its activations.* at 0,.* at 3,.*for each of these"):
        fxgrad.convert(model, (X,))
    for layer in (model[0], model[3]):
        layer.weight = nn.Parameter(layer.weight.dequantize())
    assert_proved(model, tmp_path)


def four_bit(packed: bool, nested: bool, quant_type: str = "nf4", **options: Any) -> nn.Sequential:
    """A model with a 4-bit layer; `packed`: laid out for processors that multiply in bfloat16, where this is one."""
    layers = pytest.importorskip("bitsandbytes.nn")
    model = net()
    layer = layers.Linear4bit(64, 64, quant_type=quant_type, compress_statistics=nested, **options)
    layer.load_state_dict(model[0].state_dict())
    model[0] = layer.to("cpu").eval()
    layer.support_avx512bf16_for_cpu &= packed
    return model


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_four_bit_layers_of_bitsandbytes(quant_type: str, nested: bool, packed: bool, tmp_path: Path) -> None:
    from bitsandbytes import functional

    model = four_bit(packed, nested, quant_type)
    weight = functional.dequantize_4bit(model[0].weight.data, model[0].weight.quant_state)
    libra = assert_proved(model, tmp_path)
    assert set(dict(libra.named_parameters())) == set(dict(model.named_parameters()))
    plain = net()
    plain[0].weight.data = weight
    wanted = gradient(fxgrad.convert(plain, (X,)), X)
    rounding = 0.05 if model[0].support_avx512bf16_for_cpu else 1e-5
    assert torch.allclose(gradient(libra, X), wanted, rtol=rounding, atol=rounding * wanted.abs().max().item())


def test_the_state_dict_of_a_four_bit_layer_may_be_read_before_and_after() -> None:
    model = four_bit(True, True)
    model.state_dict()
    libra = fxgrad.convert(model, (X,))
    before = libra(X)
    model.state_dict()
    assert torch.equal(libra(X), before)
    with torch.no_grad():
        assert torch.equal(model(X), before)


def test_eight_bit_layers_of_bitsandbytes_round_their_activations() -> None:
    layers = pytest.importorskip("bitsandbytes.nn")
    model = net()
    layer = layers.Linear8bitLt(64, 64, has_fp16_weights=False)
    layer.load_state_dict(model[0].state_dict())
    model[0] = layer.to("cpu").eval()
    with pytest.raises(fxgrad.CaptureError, match=r"int8_vectorwise_quant\.default at 0, .*\n.*model\.dequantize\(\)"):
        fxgrad.convert(model, (X,))


def test_dequantize_of_transformers_is_the_way_out(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tiny"
    tiny_llama().float().save_pretrained(folder)
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    options = {"quantization_config": config, "device_map": "cpu", "dtype": torch.float32}
    model = transformers.LlamaForSequenceClassification.from_pretrained(folder, **options).eval()
    with pytest.raises(fxgrad.CaptureError, match=r"and in \d+ more modules\n.*model\.dequantize\(\)"):
        fxgrad.convert(model, (), TEXT)
    model = model.dequantize().float().eval()
    assert fxgrad.check(fxgrad.convert(model, (), TEXT), (), TEXT, original=model).passed


IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
TEXT = {"input_ids": IDS, "attention_mask": (IDS > 0).long(), "use_cache": False}
PICTURES = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def tiny_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, vocab_size=50, num_key_value_heads=2, pad_token_id=0, num_labels=3)
    return LlamaForSequenceClassification(config).double().eval()


def tiny_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SMALL, vocab_size=50, num_labels=3)).double().eval()


def tiny_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3)
    return ViTForImageClassification(config).double().eval()


MODELS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "llama": (tiny_llama, TEXT, ["k_proj", "v_proj", "down_proj"]),
    "bert": (tiny_bert, {k: v for k, v in TEXT.items() if k != "use_cache"}, ["key", "value", "output.dense"]),
    "vit": (tiny_vit, PICTURES, ["k_proj", "v_proj", "fc2"]),
}


def adapted(name: str, adapter: str) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny model with an adapter of random weights, and its inputs."""
    peft = pytest.importorskip("peft")
    make, inputs, targets = MODELS[name]
    config = {
        "lora": lambda: peft.LoraConfig(r=4, target_modules=targets, lora_dropout=0.1, bias="lora_only"),
        "dora": lambda: peft.LoraConfig(r=4, target_modules=targets, use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=targets, feedforward_modules=targets[2:]),
        "loha": lambda: peft.LoHaConfig(r=4, target_modules=targets),
    }[adapter]()
    model = peft.get_peft_model(make(), config).double().eval()
    randomize(model)
    return model, inputs


def randomize(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 5


def tokens_of(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, float]:
    libra = fxgrad.convert(model, (), inputs)
    report = fxgrad.check(libra, (), inputs, original=model)
    assert report.passed, report
    assert set(libra.state_dict()) == set(model.state_dict())
    found = fxgrad.attribute(libra, (), inputs, target=1)
    return found.tokens, found.completeness_error


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "loha"])
@pytest.mark.parametrize("name", MODELS)
def test_adapters_merged_and_not(name: str, adapter: str) -> None:
    model, inputs = adapted(name, adapter)
    tokens, error = tokens_of(model, inputs)
    limit = 1e-4 if name == "llama" else 1e-10  # its norms compute in float32
    assert error < limit
    with model.disable_adapter():
        assert not torch.allclose(tokens, tokens_of(model, inputs)[0], rtol=1e-3)
    merged = tokens_of(model.merge_and_unload().eval(), inputs)[0]
    assert torch.allclose(tokens, merged, rtol=0, atol=limit * merged.abs().max().item())


@pytest.mark.parametrize("config", ["PromptTuningConfig", "PromptEncoderConfig"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_virtual_tokens(name: str, config: str) -> None:
    peft = pytest.importorskip("peft")
    make, inputs, _ = MODELS[name]
    model = peft.get_peft_model(make(), getattr(peft, config)(num_virtual_tokens=3, task_type="SEQ_CLS"))
    model = model.double().eval()
    randomize(model)
    tokens, error = tokens_of(model, inputs)
    assert tokens.shape[0] == 2 and error < (1e-4 if name == "llama" else 1e-10)


def test_lora_on_four_bit_layers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = four_bit(False, True)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0", "3"])).eval()
    randomize(model)
    libra = assert_proved(model, tmp_path)
    with model.disable_adapter():
        assert not torch.allclose(gradient(libra, X), gradient(fxgrad.convert(model, (X,)), X), rtol=1e-3)


def test_lora_on_weights_of_torchao(tmp_path: Path) -> None:
    peft, quantization = pytest.importorskip("peft"), pytest.importorskip("torchao.quantization")
    base = net()
    quantization.quantize_(base, quantization.Int8WeightOnlyConfig())
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0", "3"])).eval()
    randomize(model)
    assert_proved(copy.deepcopy(model), tmp_path)


@pytest.mark.parametrize("kind", ["lora", "int8"])
def test_answers_of_adapted_and_quantised_language_models(kind: str) -> None:
    from fxgrad.text import Explainer
    from tests.helpers.language_models import model, tokenizer

    net: Any = model("llama").float()
    if kind == "lora":
        peft = pytest.importorskip("peft")
        net = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    else:
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    explainer = Explainer(net, tokenizer())
    for prompt, answer in (("the sky is", " blue red"), ("one two three", " four")):
        found = explainer.explain(prompt, answer)
        assert found.completeness_error is not None and found.completeness_error < 1e-4
