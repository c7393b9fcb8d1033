"""The gradients of the published lxt package (2.1, efficient mode), as `python -m tests.helpers.lxt_gradients FOLDER`.

lxt patches classes for the whole process, and one policy at a time: hence never in the tests' process, and a
fork for each policy. It was written for transformers 4; what stands in here for names that transformers 5 has
dropped is marked so, and holds no gradient rule.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from bench.speed.lxt_patches import AttentionFunctions, stand_ins

EPSILON = 1e-10
"""What identity_rule_implicit adds to the denominator of f(x) / x."""

SIZE = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# Of BERT's, transformers 5 has dropped the names that lxt's copy asks for, from position_embedding_type on.
BERT = {**SIZE, "num_labels": 3, "position_embedding_type": "absolute"}
BERT |= {"is_decoder": False, "add_cross_attention": False, "chunk_size_feed_forward": 0}
GPT2 = {"vocab_size": 30, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
VIT = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 48}

MODELS: dict[str, Any] = {
    "llama": lambda **o: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZE, num_key_value_heads=2, use_cache=False, **o)
    ),
    "gpt2": lambda **o: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, use_cache=False, **o)),
    "bert": lambda **o: modeling_bert.BertForSequenceClassification(transformers.BertConfig(**BERT, **o)),
    "vit": lambda **_: VisionTransformer(**VIT, num_classes=5),
}
PUBLISHED = {"attnlrp": ("llama", "gpt2", "bert"), "cp-lrp": ("llama", "gpt2", "vit")}
"""The models that lxt has a map for, by policy."""


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    """Llama's norms and eager softmax are in float32 whatever the model is in, also in lxt: here that means float64."""
    promoted = SimpleNamespace(**vars(torch))
    promoted.float32 = torch.float64
    modules = [modeling_llama, sys.modules.get("lxt.efficient.patches")]
    with contextlib.ExitStack() as stack:
        for module in filter(None, modules):
            stack.enter_context(mock.patch.object(module, "torch", promoted))
        yield


def build(name: str, **options: Any) -> nn.Module:
    """The model in float64, its parameters random and the same in every process."""
    model, generator = MODELS[name](**options), torch.Generator().manual_seed(1)
    for key, value in sorted(model.state_dict().items()):
        if value.is_floating_point():
            centre = 1.0 if value.dim() == 1 and key.endswith("weight") else 0.0  # a norm's
            value.copy_(centre + torch.randn(value.shape, generator=generator) * 0.2)
    return model.double().eval().requires_grad_(False)


def example(name: str) -> Tensor:
    """Token ids, or images."""
    generator = torch.Generator().manual_seed(2)
    if name == "vit":
        return torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    return torch.randint(1, 30, (2, 6), generator=generator)


def cotangent(output: Tensor) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(name: str, activations: list[Tensor]) -> dict[str, Tensor]:
    """The patched model's gradient, and what it would be more without epsilon, to first order in that.

    identity_rule_implicit hands on r = s * f(x) / (x + epsilon) where s arrived; without epsilon it would be
    r * (1 + epsilon / x). So from every activation, r * epsilon / x is missing at x, and its vjp at the input. Where
    two activations lie on one path, their product is missing, too: `nearest`, each one's smallest |x|, bounds that.
    """
    activations.clear()
    model = build(name, attn_implementation="eager")
    leaf = example(name) if name == "vit" else model.get_input_embeddings()(example(name))  # type: ignore[operator]
    leaf.requires_grad_()
    output = model(leaf) if name == "vit" else model(inputs_embeds=leaf).logits
    found, *arriving = torch.autograd.grad(output, [leaf, *activations], cotangent(output), retain_graph=True)
    result = {"gradient": found, "epsilon": torch.zeros_like(found), "nearest": torch.tensor(math.inf)}
    if activations:
        missing = [r * EPSILON / x for r, x in zip(arriving, activations)]
        result["epsilon"] = torch.autograd.grad(activations, leaf, missing)[0]
        result["nearest"] = torch.stack([x.detach().abs().min() for x in activations])
    return result


def import_lxt() -> None:
    """Import lxt under transformers 5. Its copy of BERT asks for these names."""
    with stand_ins():
        from lxt.efficient.models import bert

    bert.BertModel.get_extended_attention_mask = lambda self, mask, shape: (1 - mask[:, None, None, :]) * -1e9
    bert.BertModel.get_head_mask = lambda self, mask, layers: [None] * layers


def patch(policy: str) -> None:
    """lxt's own patches, for all models that it has a map for.

    It warns of what it finds patched already: LayerNorm, by way of another model.
    """
    from lxt.efficient import monkey_patch
    from lxt.efficient.models import bert, gpt2, llama, vit_torch

    maps = {"llama": llama, "gpt2": gpt2, "bert": bert, "vit": vit_torch}
    for name in PUBLISHED[policy]:
        monkey_patch(None, getattr(maps[name], {"attnlrp": "attnLRP", "cp-lrp": "cp_LRP"}[policy]))
    for module in (modeling_llama, modeling_gpt2):
        if not hasattr(module.ALL_ATTENTION_FUNCTIONS, "get_interface"):
            module.ALL_ATTENTION_FUNCTIONS = AttentionFunctions(module.ALL_ATTENTION_FUNCTIONS)


def main(policy: str, folder: Path) -> None:
    from lxt.efficient import rules

    patch(policy)
    activations: list[Tensor] = []
    identity = rules.identity_rule_implicit_fn.apply

    def recording(function: Any, x: Tensor) -> Tensor:
        activations.append(x)
        return identity(function, x)

    rules.identity_rule_implicit_fn = SimpleNamespace(apply=recording)  # looked up at every call
    with float64_throughout():
        for name in PUBLISHED[policy]:
            save_file(gradients(name, activations), folder / f"{policy}-{name}.safetensors")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    import_lxt()
    for chosen in PUBLISHED:
        child = os.fork()
        if child == 0:
            main(chosen, Path(sys.argv[1]))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, f"no gradients for {chosen}: see above"
