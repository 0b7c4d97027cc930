"""Streams, which order work on a device, and events, which mark places in them.

CuPy and gpugrad have the same current stream: code of either goes where the other's goes.
"""

from __future__ import annotations

import itertools
from typing import Any

from ..backend import cupy as backend
from ..backend import device_errors
from ..backend.device import device as device_class
from .devices import index_of
from .devices import set_device as _set_device

# Streams are never destroyed, as in torch: CuPy's pool knows the blocks of a stream by its address,
# which CUDA would give to another one. Beyond so many, per device and priority, they are shared.
STREAMS = 32
_made: dict[tuple[int, int], list] = {}
_turn: dict[tuple[int, int], Any] = {}


def _from_pool(index: int, priority: int):
    """A CuPy stream that does not wait for the default stream."""
    key = (index, priority)
    streams = _made.setdefault(key, [])
    if len(streams) < STREAMS:
        cuda = backend.cupy().cuda
        with cuda.Device(index):
            streams.append(cuda.Stream(non_blocking=True, priority=priority))
        return streams[-1]
    return streams[next(_turn.setdefault(key, itertools.cycle(range(STREAMS))))]


class Stream:
    """A queue of work on a device: ``Stream(device=None, priority=0)``.

    Work of different streams may overlap; the order between them is made by events or
    ``wait_stream``. Lower numbers have higher priority. ``with stream:`` makes it the current one.
    """

    def __init__(self, device: Any = None, priority: int = 0):
        index = index_of(device)
        self._bind(_from_pool(index, priority), index)

    def _bind(self, cupy_stream, index: int) -> None:
        self.cupy = cupy_stream  # the CuPy stream itself
        self.device = device_class("cuda", index)
        self._contexts: list[stream] = []

    @property
    def cuda_stream(self) -> int:
        """The address of the CUDA stream."""
        return self.cupy.ptr

    @property
    def priority(self) -> int:
        return self.cupy.priority

    def query(self) -> bool:
        """Whether all work queued so far is done."""
        return self.cupy.done

    def synchronize(self) -> None:
        """Wait until all work queued so far is done."""
        self.cupy.synchronize()
        device_errors.check()

    def record_event(self, event: Event | None = None) -> Event:
        """Mark this place of the queue with an event, a new one unless given."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let work queued from now on wait for an event; the host goes on."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let work queued from now on wait for all that is queued on another stream."""
        self.wait_event(stream.record_event())

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.cuda_stream

    def __enter__(self) -> Stream:
        context = stream(self)
        context.__enter__()
        self._contexts.append(context)
        return self

    def __exit__(self, *exc) -> None:
        self._contexts.pop().__exit__(*exc)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Stream):
            return NotImplemented
        return (self.cuda_stream, self.device) == (other.cuda_stream, other.device)

    def __hash__(self) -> int:
        return hash((self.cuda_stream, self.device))

    def __repr__(self) -> str:
        return f"<gpugrad.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


def _wrapped(cupy_stream, index: int) -> Stream:
    s = Stream.__new__(Stream)
    s._bind(cupy_stream, index)
    return s


class ExternalStream(Stream):
    """A stream of another library, by its address, or by an object with ``__cuda_stream__``."""

    def __init__(self, stream_ptr: Any, device: Any = None):
        index = index_of(device)
        given = stream_ptr if hasattr(stream_ptr, "__cuda_stream__") else _Address(stream_ptr)
        external = backend.cupy().cuda.Stream.from_external(given)
        external.device_id = index
        self._bind(external, index)


class _Address:
    def __init__(self, pointer: int):
        self.pointer = int(pointer)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


class Event:
    """A mark in a stream. ``enable_timing`` is needed for ``elapsed_time``; with ``blocking`` the
    host sleeps while it waits."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ):
        if interprocess and enable_timing:
            raise ValueError("an event cannot have both interprocess=True and enable_timing=True")
        self._timed, self._options = enable_timing, (blocking, not enable_timing, interprocess)
        self._event: Any = None  # CUDA's, made when first recorded, on the device of the stream
        self.device: device_class | None = None

    @property
    def cuda_event(self) -> int:
        """The address of the CUDA event; 0 before it is recorded."""
        return 0 if self._event is None else self._event.ptr

    def record(self, stream: Stream | None = None) -> None:
        """Mark the place that a stream (default: the current one) is at."""
        stream = current_stream() if stream is None else stream
        if self._event is None:
            with backend.on_device(stream.device):
                self._event = backend.cupy().cuda.Event(*self._options)
            self.device = stream.device
        elif self.device != stream.device:
            raise RuntimeError(
                f"Event device {self.device} does not match recording stream's device "
                f"{stream.device}."
            )
        with backend.on_device(stream.device):
            self._event.record(stream.cupy)

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream (default: the current one) wait for the event."""
        if self._event is not None:
            stream = current_stream() if stream is None else stream
            stream.cupy.wait_event(self._event)

    def query(self) -> bool:
        """Whether all work before the mark is done (also if nothing was marked)."""
        return self._event is None or self._event.done

    def synchronize(self) -> None:
        """Wait until all work before the mark is done."""
        if self._event is not None:
            self._event.synchronize()
            device_errors.check()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds between this mark and a later one."""
        if not (self._timed and end_event._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._event is None or end_event._event is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end_event.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return backend.cupy().cuda.get_elapsed_time(self._event, end_event._event)

    def __repr__(self) -> str:
        state = f"{self.cuda_event:#x}" if self._event is not None else "uninitialized"
        return f"<gpugrad.cuda.Event {state}>"


class stream:
    """A context in which a stream (and its device) is the current one; None changes nothing."""

    def __init__(self, stream: Stream | None):
        self.stream = stream
        self._before: list[tuple[int, Any]] = []

    def __enter__(self) -> stream:
        if self.stream is not None:
            self._before.append((backend.current_device(), _use(self.stream)))
        return self

    def __exit__(self, *exc) -> None:
        if self.stream is not None:
            device, before = self._before.pop()
            _set_device(self.stream.device)
            before.use()
            _set_device(device)


def _use(s: Stream):
    """Make a stream the current one of its device, and that the current one; returns the CuPy
    stream it replaces."""
    _set_device(s.device)
    before = backend.cupy().cuda.get_current_stream()
    s.cupy.use()
    return before


def set_stream(stream: Stream | None) -> None:
    """Make a stream and its device the current ones of this thread; None changes nothing."""
    if stream is not None:
        _use(stream)


def current_stream(device: Any = None) -> Stream:
    """The stream that work on a device (default: the current one) is queued on."""
    index = index_of(device)
    return _wrapped(backend.cupy().cuda.get_current_stream(index), index)


def default_stream(device: Any = None) -> Stream:
    """The stream that is the current one until another is chosen."""
    index = index_of(device)
    return _wrapped(backend.cupy().cuda.Stream.null, index)
