"""A module of a user's, written to a file: a small classifier with the class names and preprocessing that commands read."""

FACTORY = """
import torch
from torch import nn

CLASS_NAMES = ["ant", "bee", "cat"]

def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.GELU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3))
    model.default_cfg = dict(input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.8)
    return model
"""
