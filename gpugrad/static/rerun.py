"""A compiled function run once more, in eager mode, as it was called: derivatives of the derivative
of a call are taken through such a run.

It draws the random numbers of the call, reads what the call read, and leaves no traces: generators,
memory that it writes (the running statistics of a batch norm) and gradients are as before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..backend.arrays import there
from ..errors import SavedTensorError, at
from ..random import state_at
from ..tensor import Tensor, bump_versions, version_of
from ..tree import flatten
from .graph import Graph, Value
from .output import Output
from .sources import Argument, Live, tensor_of

if TYPE_CHECKING:
    from .recording import Recording


class Before(NamedTuple):
    """What a call began with: seeds and positions of the generators it draws from, and the content
    of arrays that it overwrites and whose content matters to its results."""

    positions: list[tuple[int, int]]
    contents: list[Any]


class Rerun:
    """Runs the function of a program again: ``rerun(leaves)`` gives its outputs as tensors."""

    def __init__(self, function: Callable, recording: Recording, graph: Graph, results: list[int]):
        """``graph`` is what was recorded, ``results`` are the places of its outputs among the
        leaves that the function returns."""
        self.function, self.results = function, results
        drawn = [h.generator for h in recording.hosts if h.generator is not None]
        self.generators = list(dict.fromkeys(drawn))
        self.owners = [t for t, _ in recording.grads]
        sources = dict(zip(graph.inputs, graph.sources, strict=True))
        matters = _behind(graph, graph.outputs[: recording.count])
        # memory that is overwritten: that whose content matters to the results, and other
        self.state = [sources[t] for t, v in graph.stores if matters & {t, v}]
        self.statistics = [sources[t] for t, v in graph.stores if not matters & {t, v}]
        stored = {target for target, _ in graph.stores}
        self.read = [
            s for v, s in sources.items() if s.__class__ in (Argument, Live) and v not in stored
        ]
        self.needs_before = bool(self.generators or self.state)

    def __call__(self, leaves: Sequence) -> list[Tensor]:
        with Output(shows=False):  # its printing was seen already
            returned, _ = flatten(self.function(leaves))
        return [returned[k] for k in self.results]

    def before(self, leaves: Sequence) -> Before:
        """To be kept from the beginning of a call, if ``needs_before``."""
        positions = [(g._seed, g._position) for g in self.generators]
        return Before(positions, [_copy(_array(s, leaves)) for s in self.state])

    @contextmanager
    def as_before(self, before: Before | None, leaves: Sequence, time: int) -> Iterator[None]:
        """A block in which everything is as it was when the call at a time of the tape's clock
        began. Raises SavedTensorError if something was written since that is not known any more."""
        self._check(leaves, time)
        positions, contents = before or ([], [])
        states = [g.get_state() for g in self.generators]
        owners = [leaves[t.place] if t.__class__ is Argument else t for t in self.owners]
        grads = [t.grad for t in owners]
        written = [_Written(s, leaves) for s in (*self.state, *self.statistics)]
        for g, position in zip(self.generators, positions, strict=True):
            g.set_state(state_at(*position))
        for w, content in zip(written, contents, strict=False):
            w.array[...] = content
        try:
            yield
        finally:
            for g, state in zip(self.generators, states, strict=True):
                g.set_state(state)
            for k, w in enumerate(written):
                w.restore(noted=k < len(self.state))
            for t, grad in zip(owners, grads, strict=True):
                t.grad = grad

    def _check(self, leaves: Sequence, time: int) -> None:
        for source in self.read:
            t = tensor_of(source, leaves)
            if isinstance(t, Tensor) and t.version > time:
                line = t._version[1] if t._version else None
                raise SavedTensorError(
                    f"a derivative of the derivative of a compiled function runs the function "
                    f"again, but a tensor of shape {tuple(t.shape)} that it reads was written in "
                    f"place{at(line)} since it was called. Take the derivative before writing, or "
                    f"write to a clone()."
                )


class _Written:
    """Memory that a rerun writes, to be as it is now afterwards."""

    def __init__(self, source, leaves: Sequence):
        owner = tensor_of(source, leaves)
        self.tensor = owner if isinstance(owner, Tensor) else None
        self.array = _array(source, leaves)
        self.content = _copy(self.array)
        self.version: list = [] if self.tensor is None else version_of(self.tensor)[:2]

    def restore(self, noted: bool) -> None:
        """``noted``: records made meanwhile may have saved the memory; they shall know."""
        self.array[...] = self.content
        if self.tensor is not None and noted:
            bump_versions([[self.tensor]])
        elif self.tensor is not None:
            version_of(self.tensor)[:2] = self.version


def _behind(graph: Graph, outputs: Sequence[Value]) -> set[Value]:
    """All values that some values are computed from, and these."""
    found = set(outputs)
    for node in reversed(graph.nodes):
        if found.intersection(node.outputs):
            found.update(node.values)
    return found


def _array(source, leaves: Sequence):
    owner = tensor_of(source, leaves)
    if owner is None:
        return source.read()
    return owner.array if isinstance(owner, Tensor) else owner


def _copy(array):
    with there(array):
        return array.copy()
