"""``gpugrad.compile``: a function that is recorded, and then replayed without running its Python.

A call looks up a variant by the shapes, dtypes and structure of the arguments. A variant is
recorded from real calls until two recordings in a row are the same (an optimizer makes its state in
the first); from then on its graph is replayed. What cannot be replayed runs as it is, with one
warning that says why.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ..backend import arrays as backend_arrays
from ..compiler import Changed
from ..config import modes, settings
from ..errors import at
from ..tensor import Tensor, bump_versions, wrap
from ..tree import flatten
from . import passes
from .graph import Graph, difference
from .record import Recorder
from .runners import runner_for
from .sources import Argument, ArgumentGrad, HostResult, LiveGrad

_ndarray = backend_arrays._ndarray
# Recordings that may differ before a variant is given up.
_ATTEMPTS = 6
# Variants that are kept; more shapes than these run eagerly.
_VARIANTS = 64
_MISS = object()


class Recording:
    """What one recorded call was: its graph, what it returned, whose gradients it changed."""

    def __init__(self, recorder: Recorder, outputs, grads, entered_without: set[int]):
        self.graph: Graph = recorder.graph
        self.hosts, self.failure = recorder.hosts, recorder.failure
        self.outputs, self.grads = outputs, grads
        # leaves that had no gradient when the call began and none when it was added to
        self.entered_without = entered_without

    def differs(self, other: Recording) -> str | None:
        """What two recordings with the same graph return differently; None if they do not."""
        mine, others = self.outputs[0], other.outputs[0]
        if len(mine) != len(others):
            return "it returns more or fewer values"
        for a, b in zip(mine, others, strict=True):
            if not _same_result(a, b):
                return f"it returned {a!r:.60}, then {b!r:.60}"
        grads = [[(_owner(t), v is None) for t, v in r.grads] for r in (self, other)]
        return None if grads[0] == grads[1] else "it changes the gradients of other tensors"


def _owner(t):
    return id(t) if isinstance(t, Tensor) else t


def _same_result(a, b) -> bool:
    """Whether two returned leaves are the same: numbers and strings by value, others by
    identity."""
    if a.__class__ is _Place or isinstance(a, (bool, int, float, complex, str)):
        return a.__class__ is b.__class__ and (a == b or a != a)
    return a is b


def recorded(function: Callable, args, kwargs, leaves: Sequence) -> tuple[Any, Recorder]:
    """Call a function while a recorder looks."""
    recorder = Recorder()
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) or backend_arrays.is_array(leaf):
            recorder.argument(leaf, Argument(place))
    outer, modes.local.recording = modes.local.recording, recorder
    modes.enter(special=True)
    try:
        return function(*args, **kwargs), recorder
    finally:
        modes.leave(special=True)
        modes.local.recording = outer


class Compiled:
    """A compiled function; see ``compile``."""

    def __init__(
        self, function: Callable, check: int, outputs: str, dynamic: bool, fullgraph: bool
    ):
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__
        self._function, self._checks = function, check
        self._borrow, self._dynamic, self._fullgraph = outputs == "borrow", dynamic, fullgraph
        self._variants: dict[Any, Variant] = {}
        self._lock = threading.RLock()
        self._warned = False
        self.calls = 0

    def __call__(self, *args, **kwargs):
        if modes.special:  # another recorder, forward mode, ...: as a part of that
            return self._function(*args, **kwargs)
        leaves, _ = flatten((args, kwargs)) if args or kwargs else ((), None)
        key = self._key(leaves, args, kwargs)
        self.calls += 1
        with self._lock:
            variant = self._variants.get(key)
            if variant is None:
                variant = self._new_variant(key)
            if variant.rejected is None:
                result = variant.replay(leaves)
                if result is not _MISS:
                    return result
                return self._record(variant, args, kwargs, leaves)
        return self._function(*args, **kwargs)

    # ---- variants

    def _key(self, leaves: Sequence, args, kwargs) -> Any:
        key: list = [not modes.unusual or modes.local.grad, settings.default_dtype]
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                a = leaf.array
                without_grad = leaf.grad is None
                key.append((a.shape, a.dtype, a.__class__, leaf._node is not None, without_grad))
            elif backend_arrays.is_array(leaf):
                key.append((leaf.shape, leaf.dtype, leaf.__class__))
            else:
                key.append((leaf.__class__, _hashable(leaf)))
        if leaves:
            key.append(_structure(args))
            key.append(_structure(kwargs))
        key.extend(self._surroundings())
        return tuple(key)

    def _surroundings(self) -> list:
        """What the function reads beside its arguments: numbers of its closure, training flags."""
        return []

    def _new_variant(self, key) -> Variant:
        variant = Variant()
        if len(self._variants) >= _VARIANTS:
            variant.rejected = f"more than {_VARIANTS} variants"
        else:
            self._variants[key] = variant
        return variant

    def _record(self, variant: Variant, args, kwargs, leaves: Sequence):
        before = variant.previous
        without = set() if before is None else {
            id(t) for t, _ in before.grads if isinstance(t, Tensor) and t.grad is None
        }  # fmt: skip
        result, recorder = recorded(self._function, args, kwargs, leaves)
        recording = _finish(recorder, result, leaves, without)
        variant.take(recording)
        if variant.rejected is not None:
            self._reject(variant.rejected)
        return result

    def _reject(self, reason: str) -> None:
        if self._fullgraph:
            raise RuntimeError(f"{self.__name__} cannot be compiled as one graph: {reason}")
        if not self._warned:
            self._warned = True
            warnings.warn(f"{self.__name__} runs eagerly: {reason}", stacklevel=4)

    # ---- what it is

    @property
    def graph(self) -> Graph | None:
        """The graph of the variant made last, as it was optimised; None before the first call."""
        for variant in reversed(self._variants.values()):
            if variant.programs:
                return variant.programs[-1].graph
            if variant.previous is not None:
                return variant.previous.graph
        return None

    @property
    def num_ops(self) -> int:
        graph = self.graph
        return 0 if graph is None else graph.num_ops


class Variant:
    """Calls with arguments of the same shapes, dtypes and structure: one program for each way
    through the function's branches."""

    def __init__(self):
        self.programs: list[ReplayedProgram] = []
        self.previous: Recording | None = None
        self.rejected: str | None = None
        self.attempts = 0

    def replay(self, leaves: Sequence):
        for program in self.programs:
            result = program(leaves)
            if result is not _MISS:
                return result
        return _MISS

    def take(self, recording: Recording) -> None:
        """Compile a recording if it is the same as the one before."""
        before, self.previous = self.previous, recording
        self.attempts += 1
        if recording.failure is not None:
            reason, line = recording.failure
            self.rejected = f"{reason}{at(line)}"
            return
        if before is not None:
            what = difference(before.graph, recording.graph) or before.differs(recording)
            if what is None:
                self.programs.insert(0, ReplayedProgram(recording))
                self.previous, self.attempts = None, 0
            elif self.attempts >= _ATTEMPTS:
                self.rejected = f"its calls differ: {what}"


# ------------------------------------------------------------------------------------------------
# results


class _Place:
    """Where a returned tensor is found: among the results of the graph, or the tensor itself."""

    __slots__ = ("argument", "bare", "result", "tensor")

    def __init__(self, result=None, argument=None, tensor=None, bare: bool = False):
        self.result, self.argument, self.tensor = result, argument, tensor
        self.bare = bare  # an array, not a tensor

    def __eq__(self, other) -> bool:
        same = self.tensor is other.tensor and self.bare == other.bare
        return same and (self.result, self.argument) == (other.result, other.argument)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"argument {self.argument}" if self.argument is not None else "a tensor"


def _finish(recorder: Recorder, result, leaves: Sequence, without: set[int]) -> Recording:
    returned, rebuild = flatten(result)
    arguments = {id(leaf): place for place, leaf in enumerate(leaves)}
    computed: list = []
    places: list = []
    for leaf in returned:
        bare = backend_arrays.is_array(leaf)
        if not isinstance(leaf, Tensor) and not bare:
            places.append(leaf)
        elif id(leaf) in arguments:
            places.append(_Place(argument=arguments[id(leaf)]))
        elif not bare and recorder.is_live(leaf):
            places.append(_Place(tensor=leaf))
        else:
            places.append(_Place(result=len(computed), bare=bare))
            computed.append(wrap(leaf) if bare else leaf)
    graph = recorder.finish(computed)
    grads = recorder.grads()
    graph.outputs += [v for _, v in grads if v is not None]
    passes.drop_dead(graph)
    recording = Recording(recorder, (places, rebuild, len(computed)), grads, set())
    recording.entered_without = {
        id(t) for t, was_none in recorder.leaves.values() if was_none and id(t) in without
    }
    return recording


class ReplayedProgram:
    """A graph that is replayed: reads its inputs, runs, and leaves the world as the function would
    have."""

    def __init__(self, recording: Recording):
        start = time.perf_counter()
        graph = self.graph = recording.graph
        self.recording = recording
        self._run = runner_for(graph)
        self._hosts = recording.hosts
        numbers = {id(h): k for k, h in enumerate(self._hosts)}
        self._reads = []
        for source in graph.sources:
            if source.__class__ is Argument:
                self._reads.append((0, source.place))
            elif source.__class__ is ArgumentGrad:
                self._reads.append((3, source.place))
            elif source.__class__ is HostResult:
                self._reads.append((1, numbers[id(source.host)], source.place))
            else:
                self._reads.append((2, source))
        self._stores = [graph.inputs.index(target) for target, _ in graph.stores]
        self._tensors = [getattr(graph.sources[k], "tensor", None) for k in self._stores]
        self.compile_seconds = time.perf_counter() - start

    def __call__(self, leaves: Sequence):
        recording = self.recording
        for tensor, _ in recording.grads:
            if id(tensor) in recording.entered_without and tensor.grad is not None:
                return _MISS
        inputs = self._inputs(leaves)
        if inputs is _MISS:
            return _MISS
        try:
            results = self._run(*inputs)
        except Exception:  # eager mode raises it where it belongs, if it is an error there
            results = None
        except BaseException:
            self._undo()
            raise
        if results is None:
            self._undo()
            return _MISS
        self._bump(leaves)
        return self._returned(results, leaves)

    def _undo(self) -> None:
        """Take back what the hosts counted."""
        for host in self._hosts[::-1]:
            if host.undo is not None:
                host.undo()

    def _inputs(self, leaves: Sequence):
        try:
            answers = [host.call() for host in self._hosts]
        except Changed:
            return _MISS
        inputs = []
        for read in self._reads:
            if read[0] == 0:
                leaf = leaves[read[1]]
                inputs.append(getattr(leaf, "array", leaf))
            elif read[0] == 1:
                inputs.append(answers[read[1]][read[2]])
            elif read[0] == 3:
                grad = leaves[read[1]].grad
                inputs.append(None if grad is None else grad.array)
            else:
                inputs.append(read[1].read())
        for v, array in zip(self.graph.inputs, inputs, strict=True):
            if v.dtype is not None and (
                array is None or array.shape != v.shape or array.dtype != v.dtype
            ):
                self._undo()
                return _MISS
        return inputs

    def _bump(self, leaves: Sequence) -> None:
        """Note the writes, for the checks of saved tensors."""
        written = []
        for k, tensor in zip(self._stores, self._tensors, strict=True):
            source = self.graph.sources[k]
            if source.__class__ is Argument:
                tensor = leaves[source.place]
            elif source.__class__ is ArgumentGrad:
                tensor = leaves[source.place].grad
            elif source.__class__ is LiveGrad:
                tensor = tensor.grad
            if isinstance(tensor, Tensor):
                written.append(tensor)
        if written:
            bump_versions([written])

    def _returned(self, results: Sequence, leaves: Sequence):
        places, rebuild, count = self.recording.outputs
        outputs = [wrap(r) for r in results[:count]]
        k = count
        for tensor, value in self.recording.grads:
            if tensor.__class__ is Argument:
                tensor = leaves[tensor.place]
            if value is None:
                tensor.grad = None
            else:
                tensor.grad = wrap(results[k])
                k += 1
        found = []
        for p in places:
            if p.__class__ is not _Place:
                found.append(p)
            elif p.result is not None:
                found.append(results[p.result] if p.bare else outputs[p.result])
            else:
                found.append(leaves[p.argument] if p.argument is not None else p.tensor)
        return rebuild(found)


def _hashable(leaf):
    try:
        hash(leaf)
    except TypeError:
        return _Identity(leaf)
    return leaf


class _Identity:
    """An object that cannot be hashed, as itself: kept, so that its identity comes once."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __eq__(self, other) -> bool:
        return other.__class__ is _Identity and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _structure(tree) -> Any:
    """A hashable description of nested tuples, lists and dicts."""
    if isinstance(tree, dict):
        return (dict, *[(k, _structure(v)) for k, v in tree.items()])
    if isinstance(tree, (tuple, list)):
        return (tree.__class__, *map(_structure, tree))
    return None


def compile(
    function: Callable | None = None,
    *,
    check: int = 0,
    outputs: str = "copy",
    dynamic: bool = False,
    fullgraph: bool = False,
):
    """A function (or module) that is recorded once and then replayed as one program."""
    if outputs not in ("copy", "borrow"):
        raise ValueError(f"outputs must be 'copy' or 'borrow', got {outputs!r}")
    if function is None:
        return lambda f: Compiled(f, check, outputs, dynamic, fullgraph)
    return Compiled(function, check, outputs, dynamic, fullgraph)
