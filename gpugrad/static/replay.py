"""A recording, compiled: reads its inputs, runs, and leaves the world as the function would."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, cast

from ..autograd import engine
from ..backend import arrays as backend_arrays
from ..backend.numpy import xp as np
from ..codegen.machine import machine
from ..compiler import Changed, module_writes
from ..tensor import Tensor, bump_versions, wrap
from . import compose, gradients, output
from .gradients import Gradients
from .graph import Graph
from .recording import Place, Recording
from .rerun import Rerun
from .run_cpu import NativeProgram
from .runners import optimized, runner_for, with_draws
from .sources import Argument, ArgumentGrad, HostResult, Live, tensor_of

MISS = object()


class ReplayedProgram:
    """One way through a function, for arguments of certain shapes.

    A call returns ``MISS``, and has changed nothing, where the recording does not apply: a guard
    has another outcome, a tensor another shape, or there is an error, which eager mode shall raise.
    """

    def __init__(
        self,
        recording: Recording,
        function: Callable,
        borrow: bool = False,
        algebra: str = "exact",
    ):
        """``function(leaves)`` runs the function itself. With ``borrow`` the returned tensors are
        over the program's own memory, if the runner lends it. ``algebra`` as for ``compile``."""
        if all(v.device is None for v in recording.graph.inputs):
            machine()  # LLVM starts once in a process: no part of what this program costs
        start = time.perf_counter()
        self.recording, self.function = recording, function
        graph = recording.graph
        graph.check()
        derivative, second, self.saved = recording.derivative, None, 0
        if derivative is not None:
            graph, second, self.saved = compose.halves(graph, derivative, recording.forward)
            second = optimized(second, algebra)
        self.recorded, first = graph, optimized(graph, algebra)
        if second is not None:
            first = compose.with_inputs_of(second, graph, first)
        self.graph, self.hosts = with_draws(first, recording.hosts)
        self.run = cast(Any, runner_for(self.graph))
        self.lends = borrow and second is None and hasattr(self.run, "lent")
        if self.lends:
            self.run.lent = recording.count
        if hasattr(self.run, "returned"):
            self.run.returned = recording.count
        self.second, self.half = second, self._second_half(second)
        self.gradients = Gradients(self.run)
        if self.run.__class__ is NativeProgram:
            owners = [
                t if isinstance(t, Tensor) else None for t, v in recording.grads if v is not None
            ]
            self.run.apart = gradients.places(self.run.graph, recording.count, owners)
        self._lent: list[weakref.ref[Tensor]] = []
        self._reads = [self._reader(source) for source in self.graph.sources]
        self._types = [(v.shape, v.dtype) for v in self.graph.inputs]
        self._live = [
            (s.tensor, s.tensor.requires_grad) for s in self.graph.sources if s.__class__ is Live
        ]
        leaves = [t for t, required in self._live if required]
        leaves += [t for t, _ in recording.grads if isinstance(t, Tensor)]
        # hooks of leaves that the program reaches by itself: they ran when it was recorded
        self._hooks = [
            (node, engine.hooks_of(node)) for node in {t._node: 0 for t in leaves} if node
        ]
        self._looked = module_writes.count
        self._stores = [self.graph.inputs.index(target) for target, _ in self.graph.stores]
        written = [self.graph.sources[k] for k in self._stores]
        arrays = [source for source in self.graph.sources if source.__class__ is not HostResult]
        # whether an argument is written that might share memory with another input
        self.overlaps_matter = len(arrays) > 1 and any(s.__class__ is Argument for s in written)
        self._seconds = time.perf_counter() - start
        self.calls = 0
        self.has_short_way = True
        self.short: Callable[[Sequence], Any] | None = None
        code = getattr(recording.function, "__code__", None)
        self.name = getattr(recording.function, "__name__", type(recording.function).__name__)
        # what errors about stale values name as the line that wrote them
        self.line = (
            (code.co_filename, code.co_firstlineno) if code else (f"compiled {self.name}", 0)
        )

    def _second_half(self, graph: Graph | None) -> compose.SecondHalf | None:
        derivative = self.recording.derivative
        if graph is None or derivative is None:
            return None
        run = runner_for(graph)
        places = enumerate(self.recording.places)
        results = {p.result: k for k, p in places if p.__class__ is Place and p.result is not None}
        ordered = [results[number] for number in sorted(results)]
        rerun = Rerun(self.function, self.recording, self.recorded, ordered)
        half = compose.SecondHalf(graph, self.graph, derivative, run, rerun)
        if self.run.__class__ is NativeProgram is run.__class__:
            self.run.saved, half.native = self.saved, True
        return half

    @property
    def compile_seconds(self) -> float:
        """Of the passes, and of what the runners did at their first call: planning, kernels."""
        second = None if self.half is None else self.half.run
        return self._seconds + sum(getattr(r, "seconds", 0.0) for r in (self.run, second))

    def _reader(self, source) -> tuple:
        if source.__class__ is Argument:
            return (0, source.place)
        if source.__class__ is HostResult:
            number = next(k for k, h in enumerate(self.hosts) if h is source.host)
            return (1, number, source.place)
        if source.__class__ is ArgumentGrad:
            return (2, source.place)
        return (3, source.read)

    # ---- the second half

    def _put_on_tape(self, outputs: list, leaves: Sequence, inputs: list, results) -> None:
        """Give the outputs one record, whose backward replays the second half."""
        half = self.half
        assert half is not None
        edges = tuple([t._node for t in half.targets(leaves)])
        if all(e is None for e in edges):
            return
        kept = results[len(results) - self.saved :]
        if self.run.__class__ is FunctionType:  # lines of Python give views of memory outside
            arrays = [a for a in inputs if hasattr(a, "shape")]
            kept = [a.copy() if _overlaps(a, arrays) else a for a in kept]
        values = [kept[k] if saved else inputs[k] for saved, k in half.reads]
        watched = [tensor_of(source, leaves) for source in half.watched]
        saved = tuple([t for t in watched if isinstance(t, Tensor)])
        half.attach(half.record(edges, saved, tuple(values), leaves), outputs)

    # ---- a call

    def __call__(self, leaves: Sequence):
        recording = self.recording
        for place, tensor in recording.pinned.items():
            if leaves[place] is not tensor:
                return MISS
        for tensor, _ in recording.grads:
            if id(tensor) in recording.entered_without and tensor.grad is not None:
                return MISS
        for tensor, required in self._live:
            if (tensor._node is not None) is not required:
                return MISS
        if self.half is None:
            return self._call(leaves)
        with self.half.lock:
            self.half.begin(leaves)
            return self._call(leaves)

    def _call(self, leaves: Sequence):
        if self._looked != module_writes.count:
            if any(engine.hooks_of(node) != hooks for node, hooks in self._hooks):
                return MISS
            self._looked = module_writes.count
        inputs = self._inputs(leaves)
        if inputs is None:
            return MISS
        if self.overlaps_matter and self._overlap(inputs):
            self.undo()
            return MISS
        if self._lent:
            self.take_back()
        if not self.gradients.are_free():
            self.gradients.leave()
        try:
            results = self.run(*inputs)
        except Exception:  # eager mode raises it where it belongs, if it is an error there
            results = None
        except BaseException:
            self.undo()
            raise
        if results is None:
            self.undo()
            return MISS
        self.calls += 1
        if self._stores:
            self._bump(leaves)
        return self._returned(inputs, results, leaves)

    def _overlap(self, inputs: Sequence) -> bool:
        """Whether an argument that is written shares memory with another input."""
        arrays = [(k, a) for k, a in enumerate(inputs) if hasattr(a, "shape")]
        return any(
            _overlaps(a, [b for j, b in arrays if j != k]) for k, a in arrays if k in self._stores
        )

    def peek(self, leaves: Sequence) -> list | None:
        """The inputs as a call would read them, without anything counted."""
        inputs = self._inputs(leaves)
        if inputs is not None:
            self.undo()
        return inputs

    def take_back(self) -> None:
        """Make the tensors that were lent unusable: their memory is about to be overwritten."""
        for ref in self._lent:
            if (t := ref()) is not None:
                t.array = Stale(self.name)
        self._lent = []

    def undo(self, count: int | None = None) -> None:
        """Take back what the hosts, or the first so many of them, counted."""
        for host in self.hosts[:count][::-1]:
            if host.undo is not None:
                host.undo()

    def _inputs(self, leaves: Sequence) -> list | None:
        answers: list = []
        if self.hosts:
            try:
                for host in self.hosts:
                    answers.append(host.call())
            except Changed:
                self.undo(len(answers))
                return None
        inputs: list = []
        for read in self._reads:
            kind = read[0]
            if kind == 3:
                inputs.append(read[1]())
            elif kind == 0:
                leaf = leaves[read[1]]
                if leaf.__class__ is float:
                    leaf = np.array(leaf)
                inputs.append(leaf.array if isinstance(leaf, Tensor) else leaf)
            elif kind == 1:
                inputs.append(answers[read[1]][read[2]])
            else:
                grad = leaves[read[1]].grad
                inputs.append(None if grad is None else grad.array)
        for (shape, dtype), array in zip(self._types, inputs, strict=True):
            if dtype is not None and (
                array is None or array.shape != shape or array.dtype != dtype
            ):
                self.undo()
                return None
        return inputs

    def _bump(self, leaves: Sequence) -> None:
        """Note the writes, for the checks of saved tensors."""
        written = []
        for k in self._stores:
            tensor = tensor_of(self.graph.sources[k], leaves)
            if isinstance(tensor, Tensor):
                written.append(tensor)
        if written:
            bump_versions([written])

    def _returned(self, inputs: list, results: Sequence, leaves: Sequence):
        recording = self.recording
        count = recording.count
        for k in recording.switched:
            leaves[k].requires_grad_(not leaves[k].requires_grad)
        outputs = [wrap(r) for r in results[:count]]
        if self.half is not None:
            self._put_on_tape(outputs, leaves, inputs, results)
        for place in recording.with_history:
            if outputs[place]._node is None:
                outputs[place]._node = engine.spent_node(outputs[place].shape)
        if self.lends:
            self._lent = [weakref.ref(t) for t in outputs]
        k = count
        self.gradients.handed = []
        for tensor, value in recording.grads:
            if tensor.__class__ is Argument:
                tensor = leaves[tensor.place]
            if value is None:
                tensor.grad = None
            else:
                tensor.grad = wrap(results[k])
                if self.run.__class__ is NativeProgram and k in self.run.apart:
                    self.gradients.handed.append((tensor, tensor.grad, k))
                k += 1
        found: list = []
        for p in recording.places:
            if p.__class__ is not Place:
                found.append(p)
            elif p.result is not None:
                found.append(_output(p, outputs[p.result]))
            else:
                base = leaves[p.argument] if p.argument is not None else p.tensor
                found.append(base if p.chain is None else view_of(base, p.chain))
        if recording.output:
            output.write(recording.output, results)
        return recording.rebuild(found)


def _overlaps(array, others: Iterable) -> bool:
    """Whether an array may share memory with one of some others."""
    may_share_memory = backend_arrays.array_module(array).may_share_memory
    return any(may_share_memory(array, other) for other in others)


def view_of(base: Tensor, chain: tuple) -> Tensor:
    """A view of a tensor, without history, as the function would have returned it."""
    view = base.detach()  # type: ignore[operator]
    for op, params in chain:
        view = op(view, **params)
    return view


class Stale:
    """In the place of the array of a borrowed tensor whose memory was overwritten."""

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    def __getattribute__(self, attribute: str):
        if attribute in ("__class__", "__dict__"):
            return object.__getattribute__(self, attribute)
        name = object.__getattribute__(self, "_name")
        raise RuntimeError(
            f"this tensor was borrowed from the compiled function {name}, whose next call "
            f"overwrote it. Use it before that, keep a clone(), or compile with outputs='copy'."
        )


def _output(place: Place, tensor: Tensor):
    if place.number:
        return tensor.item()
    return tensor.array if place.bare else tensor
