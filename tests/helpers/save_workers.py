"""What `test_save.py` runs in other processes, apart from its imports, so that these start soon."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

import fxgrad


class Samples(Dataset[Tensor]):
    """Attributions, or outputs alone, computed wherever the items are."""

    def __init__(self, libra: fxgrad.ConvertedModule, attributes: bool) -> None:
        self.libra, self.attributes = libra, attributes

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(1)
        x = torch.full((2, 4), float(index), requires_grad=self.attributes)
        with torch.set_grad_enabled(self.attributes):
            y = self.libra(x)["out"]
        return torch.autograd.grad(y.sum(), x)[0] if self.attributes else y


def write(libra: fxgrad.ConvertedModule) -> None:
    """Change a parameter in place."""
    with torch.no_grad():
        libra.get_parameter("unused").fill_(7)
