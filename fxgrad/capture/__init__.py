"""Stage 1, capture: any PyTorch model becomes one functional graph of ATen ops, with its state apart."""

from fxgrad.capture.captured import Captured, Input
from fxgrad.capture.export import capture

__all__ = ["Captured", "Input", "capture"]
