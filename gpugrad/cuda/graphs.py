"""CUDA graphs: work that is recorded once and launched again as a whole.

A graph repeats launches with the arguments they had: the same addresses, the same Python numbers.
So

* values that change live in tensors made before; copy new ones in with ``copy_`` before ``replay``;
* memory allocated while recording comes from a pool that nothing else uses and that lives as long
  as the graph, else a replay would write into memory that has gone to another array;
* run the work once or twice before it is recorded ("warm up"): the first run compiles kernels,
  makes the state of optimizers and so on;
* random numbers are fresh at every replay: the place in the stream lies in device memory;
* nothing may be recorded that waits for the device or copies from or to the host: ``.item()``,
  ``print``, ``bool(tensor)``, ``.cpu()``, ``tensor([...], device="cuda")``, boolean masks.

``capture`` does it all for a function; ``graph`` and ``CUDAGraph`` are torch's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from ..backend import cupy as backend
from ..backend.cuda_memory import PrivatePool, is_capturing, text_of_bytes
from ..random import Generator, GraphDraws
from .devices import index_of
from .streams import Stream, current_stream, stream

_MODES = ("relaxed", "thread_local", "global")


def graph_pool_handle() -> PrivatePool:
    """A memory pool for several graphs that are replayed in the order they are captured in."""
    index_of()  # a clear error without CUDA
    return PrivatePool()


def is_current_stream_capturing() -> bool:
    """Whether the current stream is recording a graph; False without CUDA."""
    return backend.is_available() and is_capturing()


class CUDAGraph:
    """Recorded work of one stream: ``capture_begin()``, the work, ``capture_end()``, ``replay()``.

    Use ``with graph(g):`` or ``capture(function)``, which also choose a stream and prepare memory.

    The graph keeps the memory that was allocated while recording, not the tensors that existed
    before: keep those (parameters, inputs) for as long as it is replayed.
    """

    def __init__(self, keep_graph: bool = False):
        index_of()
        self._graph: Any = None
        self._pool: PrivatePool | None = None
        self._recording: Recording | None = None
        self._draws = [GraphDraws()]

    def register_generator_state(self, generator: Generator) -> None:
        """Let a generator other than the default one draw fresh numbers at every replay, too."""
        self._draws.append(GraphDraws(generator))

    def capture_begin(
        self, pool: PrivatePool | CUDAGraph | None = None, capture_error_mode: str = "relaxed"
    ) -> None:
        """Record what is queued on the current stream instead of running it.

        ``pool``: a graph, or what ``graph_pool_handle()`` or ``CUDAGraph.pool()`` returned, to
        share memory with. ``capture_error_mode`` is CUDA's; with "thread_local" and "global" the
        pool must not need more memory than it has.
        """
        if self._graph is not None or self._recording is not None:
            raise RuntimeError(
                "This CUDAGraph instance already owns a captured graph. To capture a new graph, "
                "create a new instance, or call reset() first."
            )
        if capture_error_mode not in _MODES:
            raise RuntimeError(
                f"Unknown capture error mode. Expected one of {', '.join(_MODES)}, got "
                f"{capture_error_mode!r}"
            )
        if isinstance(pool, CUDAGraph):
            pool = pool.pool()
        self._pool = PrivatePool() if pool is None else pool
        self._recording = Recording(self._pool, capture_error_mode, self._draws)

    def capture_end(self) -> None:
        """End the recording. Raises RuntimeError if something was queued that cannot be
        recorded."""
        recording = self._under_way()
        self._recording = None
        self._graph = recording.end()

    def _discard(self) -> None:
        """End a recording that an exception has left."""
        recording = self._under_way()
        self._recording = self._pool = None
        recording.discard()

    def _under_way(self) -> Recording:
        if self._recording is None:
            raise RuntimeError("capture_end() without a capture_begin() before it")
        return self._recording

    def replay(self) -> None:
        """Queue the recorded work on the current stream."""
        if self._graph is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        for draws in self._draws:
            draws.next()
        self._graph.launch()

    def reset(self) -> None:
        """Forget the recorded work and release its memory."""
        if self._recording is not None:
            self._discard()
        self._graph = self._pool = None

    def pool(self) -> PrivatePool:
        """The pool of the graph's memory, for graphs that may share it."""
        if self._pool is None:
            raise RuntimeError("pool() of a CUDAGraph that has not captured anything")
        return self._pool

    def debug_dump(self, debug_path: str) -> None:
        """Write the graph as a DOT file."""
        if self._graph is None:
            raise RuntimeError("debug_dump() of a CUDAGraph that has not captured anything")
        with open(debug_path, "w") as file:
            file.write(self._graph.debug_dot_str())


class Recording:
    """One recording under way: a capturing stream, a private allocator, no garbage collection."""

    def __init__(self, pool: PrivatePool, mode: str, draws: list[GraphDraws]):
        cupy = backend.cupy()
        self.pool, self.draws = pool, draws
        self.stream = current_stream()
        if not self.stream.cuda_stream:
            raise RuntimeError(
                "CUDA graphs must be captured on a non-default stream. (However, after capture, "
                "it's ok to replay them on the default stream.)"
            )
        pool.kept.append(self.stream)
        modes = {name: getattr(cupy.cuda.runtime, _constant(name)) for name in _MODES}
        # Finalizers of streams, events and modules call CUDA, which a recording does not survive.
        self.collected = gc.isenabled()
        gc.disable()
        self.allocator = cupy.cuda.using_allocator(pool.malloc)
        self.allocator.__enter__()
        try:
            self.stream.cupy.begin_capture(modes[mode])
            for d in draws:
                d.begin()
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        for d in self.draws:
            d.end()
        self.allocator.__exit__(None, None, None)
        if self.collected:
            gc.enable()

    def end(self):
        """The recorded graph."""
        cuda, here = backend.cupy().cuda, current_stream()
        try:
            found = self.stream.cupy.end_capture()
        except cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(
                f"the CUDA graph could not be captured ({error}): between capture_begin and "
                "capture_end something was called that cannot be recorded. That is all that waits "
                "for the device (.item(), print, bool, .cpu(), synchronize), copies from the host "
                '(tensor([...], device="cuda")), work of the default stream, and work of other '
                "streams that this one does not wait for at the end"
            ) from None
        finally:
            self._restore()
        if here != self.stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        return found

    def discard(self) -> None:
        cuda = backend.cupy().cuda
        try:
            self.stream.cupy.end_capture()
        except cuda.runtime.CUDARuntimeError:
            pass  # it had become invalid
        finally:
            self._restore()


def _constant(mode: str) -> str:
    return "streamCaptureMode" + "".join(part.title() for part in mode.split("_"))


class graph:
    """A context whose work is recorded into a graph: ``with gg.cuda.graph(g): ...``.

    ``pool`` and ``capture_error_mode``: see ``CUDAGraph.capture_begin``. ``stream`` is where it is
    recorded, a stream for recordings unless given. What is left in the block by an exception is
    discarded.

    Example:
        g = gg.cuda.CUDAGraph()
        with gg.cuda.graph(g):
            y = model(x)  # x: a tensor made before
        x.copy_(new)
        g.replay()  # y now holds the new result
    """

    _default: dict[int, Stream] = {}  # one stream for recordings per device

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: PrivatePool | CUDAGraph | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "relaxed",
    ):
        self.cuda_graph, self.pool, self.mode = cuda_graph, pool, capture_error_mode
        self.stream = _capture_stream() if stream is None else stream

    def __enter__(self) -> None:
        backend.synchronize()
        gc.collect()
        self._context = stream(self.stream)
        self._context.__enter__()
        try:
            self.cuda_graph.capture_begin(self.pool, self.mode)
        except BaseException:
            self._context.__exit__()
            raise

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if error is None:
                self.cuda_graph.capture_end()
            else:
                self.cuda_graph._discard()
                error.add_note(
                    "raised while a CUDA graph was captured; the graph is discarded. What waits "
                    "for the device or copies from or to the host cannot be captured."
                )
        finally:
            self._context.__exit__()


def _capture_stream() -> Stream:
    index = index_of()
    found = graph._default.get(index)
    if found is None:
        found = graph._default[index] = Stream(index)
    return found


def capture(
    function: Callable[[], Any],
    *,
    warmup: int = 2,
    pool: PrivatePool | CUDAGraph | None = None,
    stream: Stream | None = None,
) -> tuple[CUDAGraph, Any]:
    """Record ``function()`` as a graph; returns the graph and what the function returned.

    The function runs ``warmup`` times for real, on the graph's stream and in its memory, and once
    to be recorded, which computes nothing: call ``replay()`` for that. Raises RuntimeError if the
    recording needs more memory than the runs before it: then the runs differ, and a repetition of
    one of them is not what is wanted.
    """
    g, on = CUDAGraph(), _capture_stream() if stream is None else stream
    memory = pool.pool() if isinstance(pool, CUDAGraph) else pool or PrivatePool()
    memory.kept.append(on)
    on.wait_stream(current_stream())
    with on, backend.cupy().cuda.using_allocator(memory.malloc):
        for _ in range(warmup):
            function()
    on.synchronize()
    gc.collect()  # as before the recording, so that blocks in reference cycles are free again
    before = memory.pool.total_bytes()
    with graph(g, memory, on):
        result = function()
    grown = memory.pool.total_bytes() - before
    if warmup and grown:
        g.reset()
        raise RuntimeError(
            f"the recorded run needed {text_of_bytes(grown)} more memory than the {warmup} runs "
            "before it: it does something else than these. More runs (warmup=) may settle it"
        )
    current_stream().wait_stream(on)
    return g, result
