"""Gradients that a program leaves where it computed them, instead of copying them at every call.

A parameter's ``.grad`` is then a tensor over memory of the program, which the next call overwrites.
In a training loop nobody but the parameter has it, and nobody notices. Reference counts tell where
somebody else does: who keeps the tensor gets a copy before the next call; who keeps its array, or a
view of it (NumPy's or another library's), keeps that memory, and the program goes on with other
memory, and with copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend.memory import counts_references, references
from ..backend.numpy import xp as np
from ..tensor import Tensor, wrap
from .graph import Graph
from .sources import ArgumentGrad, LiveGrad

# Bytes from which a copy costs more than to look at two reference counts (0.3 us).
_LEAST = 1 << 14


def places(graph: Graph, first: int, owners: Sequence) -> set[int]:
    """Which outputs may be left where they are: gradients of the tensors ``owners`` (others are
    None), the first of them the output ``first``."""
    sources = (ArgumentGrad, LiveGrad)
    if not counts_references or graph.guards or any(isinstance(s, sources) for s in graph.sources):
        return set()
    found = set()
    for k, owner in enumerate(owners, first):
        v = graph.outputs[k]
        once = graph.outputs.count(v) == 1
        if owner is not None and once and _bytes(v) >= _LEAST:
            found.add(k)
    return found


def _bytes(v) -> int:
    return int(np.prod(v.shape)) * v.dtype.itemsize


class Gradients:
    """The gradients of one program that are over its memory."""

    def __init__(self, run):
        self._run = run
        # parameters, the tensors that are their gradients, and which outputs these are over
        self.handed: list[tuple[Tensor, Tensor, int]] = []

    def are_free(self) -> bool:
        """Whether nobody else has them: the next call may overwrite them."""
        for j in range(len(self.handed)):
            if self._is_kept(j) or self._array_is_kept(self.handed[j][2], 1):
                return False
        return True

    def leave(self) -> None:
        """Let everybody keep what they have."""
        kept = False
        for j, (_, grad, k) in enumerate(self.handed):
            if self._is_kept(j, 1):
                grad.array = grad.array.copy()
            kept = kept or self._array_is_kept(k, int(grad.array is self._run.outputs[k]))
        self.handed = []
        if kept:
            self._run.renounce()

    def _is_kept(self, j: int, others: int = 0) -> bool:
        """Whether the tensor is kept by others than its parameter and so many local variables."""
        owner, grad, _ = self.handed[j]
        own = owner.grad is grad
        del grad
        return references(self.handed[j], 1) > _SOLE + own + others

    def _array_is_kept(self, k: int, tensors: int) -> bool:
        """Whether an output is kept by others than the program and so many tensors."""
        return references(self._run.outputs, k) > self._run.references[k] + tensors


def _sole() -> int:
    """The references to a tensor that is in ``handed`` alone."""
    handed: Any = [(None, wrap(np.zeros(1)), 0)]
    return references(handed[0], 1)


_SOLE = _sole()
