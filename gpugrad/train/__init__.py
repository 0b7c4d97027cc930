"""A small trainer: models, a loop that can stop and continue at any batch, curves."""

from __future__ import annotations

from gpugrad.train.curves import draw_curves
from gpugrad.train.loop import Callback, EpochResult, Progress, StopTraining, evaluate, fit
from gpugrad.train.models import MLP, LeNet

__all__ = [
    "MLP",
    "Callback",
    "EpochResult",
    "LeNet",
    "Progress",
    "StopTraining",
    "draw_curves",
    "evaluate",
    "fit",
]
