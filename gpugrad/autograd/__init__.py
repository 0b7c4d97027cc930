"""Automatic differentiation: the tape, its modes, and functions with derivatives of their own."""

from .checkpoint import checkpoint, checkpoint_sequential
from .engine import Node, RemovableHandle, backward, grad
from .function import Function, once_differentiable
from .grad_mode import (
    detect_anomaly,
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_detect_anomaly,
    set_grad_enabled,
)  # fmt: skip
from .gradcheck import gradcheck, gradgradcheck

__all__ = [
    "Function", "Node", "RemovableHandle", "backward", "checkpoint", "checkpoint_sequential",
    "detect_anomaly", "enable_grad", "grad",
    "gradcheck", "gradgradcheck",
    "inference_mode", "is_grad_enabled", "no_grad", "once_differentiable", "set_detect_anomaly",
    "set_grad_enabled",
]  # fmt: skip
