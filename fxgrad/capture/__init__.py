"""Stage 1, capture: any PyTorch model becomes one functional graph of ATen ops, separate from its state."""

from fxgrad.capture.captured import Captured, Input
from fxgrad.capture.export import capture

__all__ = ["Captured", "Input", "capture"]
