"""The table of operations: one row per operation, everything else derived from its kind (see
``core``)."""

from . import attention, elementwise, index, linalg, nn, random, reduce, shape
from .core import REGISTRY, Op, apply

__all__ = [
    "REGISTRY", "Op", "apply", "elementwise", "index", "linalg", "nn", "random", "reduce", "shape",
]  # fmt: skip
