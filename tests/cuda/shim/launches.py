"""Launches as data: a kernel's text, its arguments and all memory they reach.

``race.py`` runs them under ThreadSanitizer, ``replay`` in every schedule, and a GPU can be compared
with what they left in memory. The packed form is that of tests/cuda/host_device/recording.cpp.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .compiler import ShimError, build
from .kernel import FORWARD, GuardedBytes, Kernel


class Pointer(NamedTuple):
    """Into a buffer."""

    buffer: int
    offset: int = 0


class Inside(NamedTuple):
    """A pointer that lies in memory, or in argument ``-1 - buffer``, and where it points."""

    at: Pointer
    to: Pointer


class Launch(NamedTuple):
    """One launch. Buffers are arrays of any dtype, taken as bytes; other arguments are the bytes
    of their values."""

    text: str
    function: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    buffers: Sequence[np.ndarray]
    arguments: Sequence[Pointer | bytes]
    shared: int = 0
    phases: Sequence[int] = ()  # addresses of the buffers modulo 512; none: 0
    pointers: Sequence[Inside] = ()
    after: Sequence[np.ndarray] = ()  # what the launch left in the buffers, if that is known
    types: Sequence[str] = ()  # of what the buffers hold ("f4", "h2", "" for unknown), if known

    @property
    def threads(self) -> int:
        return int(np.prod(self.grid, dtype=np.int64) * np.prod(self.block, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return sum(b.nbytes for b in self.buffers)


# ---- replay --------------------------------------------------------------------------------------


def replay(launch: Launch, order: int = FORWARD, seed: int = 0) -> list[np.ndarray]:
    """The bytes of every buffer after the launch on the CPU; pointers in memory as they were."""
    path, _ = build(launch.text)
    kernel = Kernel(ctypes.CDLL(str(path)), launch.function)
    phases = launch.phases or [0] * len(launch.buffers)
    buffers = [GuardedBytes(b.tobytes(), phase) for b, phase in zip(launch.buffers, phases)]
    given = values(launch, [b.address for b in buffers])
    place_pointers(launch, [b.bytes for b in buffers], [b.address for b in buffers])
    kernel.raw(launch.grid, launch.block, given, launch.shared, order, seed)
    for buffer in buffers:
        buffer.check()
    results = [buffer.bytes.copy() for buffer in buffers]
    return without_pointers(launch, results)


def with_types(launch: Launch) -> Launch:
    """The launch with the types of its buffers, as the kernel declares its parameters."""
    path, _ = build(launch.text)
    parameters = Kernel(ctypes.CDLL(str(path)), launch.function).parameters
    types = [""] * len(launch.buffers)
    for argument, parameter in zip(launch.arguments, parameters):
        if isinstance(argument, Pointer):
            types[argument.buffer] = types[argument.buffer] or parameter.target
    return launch._replace(types=types)


def values(launch: Launch, addresses: Sequence[int]) -> list[bytes]:
    """The bytes of every argument, given where the buffers lie."""
    given = [
        struct.pack("<Q", addresses[a.buffer] + a.offset) if isinstance(a, Pointer) else bytes(a)
        for a in launch.arguments
    ]
    for at, to in launch.pointers:
        if at.buffer < 0:
            value = bytearray(given[-1 - at.buffer])
            struct.pack_into("<Q", value, at.offset, addresses[to.buffer] + to.offset)
            given[-1 - at.buffer] = bytes(value)
    return given


def place_pointers(launch: Launch, memory: Sequence[np.ndarray], addresses: Sequence[int]) -> None:
    """Writes the pointers that lie in buffers for buffers at new addresses."""
    for at, to in launch.pointers:
        if at.buffer >= 0:
            word = np.array([addresses[to.buffer] + to.offset], np.uint64).view(np.uint8)
            memory[at.buffer][at.offset : at.offset + 8] = word


def without_pointers(launch: Launch, memory: list[np.ndarray]) -> list[np.ndarray]:
    """Buffers with zeros where pointers lie, whose values mean nothing elsewhere."""
    for at, _ in launch.pointers:
        if at.buffer >= 0:
            memory[at.buffer][at.offset : at.offset + 8] = 0
    return memory


def expected(launch: Launch) -> list[np.ndarray]:
    """What the launch left in memory when it was recorded, to be compared with ``replay``."""
    return without_pointers(launch, [a.view(np.uint8).reshape(-1).copy() for a in launch.after])


# ---- files ---------------------------------------------------------------------------------------


def pack(launch: Launch, module: Path | str = "") -> bytes:
    """The launch as a file; ``module`` is the shared object that replaces its text."""
    pieces: list[bytes] = []

    def number(*values: int) -> None:
        pieces.append(struct.pack(f"<{len(values)}q", *values))

    def sized(content: bytes) -> None:
        number(len(content))
        pieces.append(content)

    sized(os.fsencode(module))
    sized(launch.function.encode())
    number(*(*launch.grid, 1, 1)[:3], *(*launch.block, 1, 1)[:3], launch.shared)
    number(len(launch.buffers))
    for i, buffer in enumerate(launch.buffers):
        number(buffer.nbytes, launch.phases[i] if launch.phases else 0)
        pieces.append(buffer.tobytes())
    number(len(launch.arguments))
    for argument in launch.arguments:
        if isinstance(argument, Pointer):
            number(*argument)
        else:
            number(-1)
            sized(argument)
    number(len(launch.pointers))
    for at, to in launch.pointers:
        number(*at, *to)
    pieces.extend(a.tobytes() for a in launch.after)
    return b"".join(pieces)


class _Reader:
    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def numbers(self, count: int) -> tuple[int, ...]:
        values = struct.unpack_from(f"<{count}q", self.content, self.at)
        self.at += 8 * count
        return values

    def number(self) -> int:
        return self.numbers(1)[0]

    def bytes(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.content):
            raise ShimError("a recorded launch is cut off")
        return self.content[self.at - count : self.at]

    def sized(self) -> bytes:
        return self.bytes(self.number())


def unpack(content: bytes, text: str | None = None) -> Launch:
    """The launch of a file. Its text is ``text``, or what stands beside the module it names."""
    read = _Reader(content)
    module, function = os.fsdecode(read.sized()), read.sized().decode()
    extents, shared = read.numbers(6), read.number()
    phases, buffers = [], []
    for _ in range(read.number()):
        size, phase = read.numbers(2)
        phases.append(phase)
        buffers.append(np.frombuffer(read.bytes(size), np.uint8))
    arguments: list[Pointer | bytes] = []
    for _ in range(read.number()):
        buffer = read.number()
        arguments.append(read.sized() if buffer < 0 else Pointer(buffer, read.number()))
    pointers = []
    for _ in range(read.number()):
        a, b, c, d = read.numbers(4)
        pointers.append(Inside(Pointer(a, b), Pointer(c, d)))
    after: list[np.ndarray] = []
    if read.at < len(content):
        after = [np.frombuffer(read.bytes(b.nbytes), np.uint8) for b in buffers]
    if text is None:
        text = Path(module).with_suffix(".cu").read_text()
    grid, block = extents[:3], extents[3:]
    return Launch(text, function, grid, block, buffers, arguments, shared, phases, pointers, after)
