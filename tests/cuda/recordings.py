"""Launches recorded while the GPU tests run on the host-memory device.

    GPUGRAD_TEST_DEVICE=host GPUGRAD_RECORD=FOLDER pytest -m gpu -p tests.cuda.recordings
    python -m tests.cuda.recordings FOLDER FILE [bytes of memory at most]

The first writes launches of every kernel, a few of different shapes each, with the memory they
found and left; ``test_kernels_on_cpu.py`` replays them in other schedules and under
ThreadSanitizer. The second packs a selection into one file, with which ``gpu_session.py`` compares
a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import lzma
import os
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from .shim.launches import Inside, Launch, Pointer, unpack, with_types

FOLDER = Path(__file__).parents[2] / "build" / "recordings"
PACKED = Path(__file__).parent / "data" / "recordings.xz"
MOST_BYTES = 1 << 16  # of memory a recorded launch may reach
MOST_OF_A_KERNEL = 3


# ---- recording, as a pytest plugin ---------------------------------------------------------------

_usual: list = []  # CuPy's allocator


def pytest_sessionstart(session) -> None:
    folder = os.environ.get("GPUGRAD_RECORD")
    if folder:
        start(Path(folder))


def pytest_runtest_setup(item) -> None:
    """Arrays get allocations of their own, so that launches reach little else and poison and guard
    pages are where they belong; but not in tests that count allocations."""
    if os.environ.get("GPUGRAD_RECORD"):
        import cupy

        if not _usual:
            _usual.append(cupy.cuda.get_allocator())
        exact = "host_device" not in getattr(item, "fixturenames", ())
        cupy.cuda.set_allocator(None if exact else _usual[0])


def start(folder: Path) -> None:
    """Record from now on."""
    from . import host_device

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.launch"):
        old.unlink()
    record = host_device.device().host_device_record
    record.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    record(os.fsencode(folder), MOST_BYTES, MOST_OF_A_KERNEL)


def read(folder: Path) -> Iterator[Launch]:
    """The launches of a folder whose kernels are ours: CuPy's own have no text beside them. Those
    that a test has broken on purpose, or that have changed since, are left out."""
    for file in sorted(folder.glob("*.launch")):
        try:
            launch = unpack(file.read_bytes())
        except FileNotFoundError:
            continue
        if is_current(launch.text):
            yield launch


@cache
def is_current(text: str) -> bool:
    """Whether the files that were included in a text still read so."""
    from gpugrad.codegen import cuda_module

    _, *pieces = re.split(r'^#line \d+ "(\w+\.cuh?)"\n', text, flags=re.MULTILINE)
    return all(
        _plain(piece) in _plain(cuda_module.file(name))
        for name, piece in zip(pieces[::2], pieces[1::2])
        if Path(cuda_module.folder(), name).exists()
    )


def _plain(text: str) -> str:
    """The lines of a source that including does not change: a repeated include is left out,
    an empty line stays."""
    lines = text.splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.startswith('#include "'))


# ---- one file ------------------------------------------------------------------------------------
# xz of: a line of JSON, then the bytes of all texts and buffers one after another. The buffers
# after a launch are kept as differences to those before, which are mostly zeros.


def write_packed(launches: Iterable[Launch], file: Path) -> None:
    texts: dict[str, int] = {}
    described, blobs = [], []
    for launch in launches:
        number = texts.setdefault(launch.text, len(texts))
        blobs += [b.tobytes() for b in launch.buffers]
        blobs += [(a ^ b).tobytes() for a, b in zip(launch.after, launch.buffers)]
        described.append(
            {
                "text": number,
                "function": launch.function,
                "grid": launch.grid,
                "block": launch.block,
                "shared": launch.shared,
                "sizes": [b.nbytes for b in launch.buffers],
                "phases": launch.phases,
                "arguments": [
                    list(a) if isinstance(a, Pointer) else a.hex() for a in launch.arguments
                ],
                "pointers": [[*i.at, *i.to] for i in launch.pointers],
                "types": launch.types,
            }
        )
    encoded = [text.encode() for text in texts]
    head = json.dumps({"texts": [len(t) for t in encoded], "launches": described})
    file.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join([head.encode(), b"\n", *encoded, *blobs])
    file.write_bytes(lzma.compress(content, preset=9))


def read_packed(file: Path | None = None) -> list[Launch]:
    content = lzma.decompress((file or PACKED).read_bytes())
    head, _, rest = content.partition(b"\n")
    described = json.loads(head)
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return rest[at - size : at]

    texts = [take(size).decode() for size in described["texts"]]
    launches = []
    for d in described["launches"]:
        before = [np.frombuffer(take(size), np.uint8) for size in d["sizes"]]
        after = [np.frombuffer(take(b.nbytes), np.uint8) ^ b for b in before]
        launches.append(
            Launch(
                text=texts[d["text"]],
                function=d["function"],
                grid=tuple(d["grid"]),
                block=tuple(d["block"]),
                buffers=before,
                arguments=[
                    bytes.fromhex(a) if isinstance(a, str) else Pointer(*a) for a in d["arguments"]
                ],
                shared=d["shared"],
                phases=d["phases"],
                pointers=[Inside(Pointer(*p[:2]), Pointer(*p[2:])) for p in d["pointers"]],
                after=after,
                types=d["types"],
            )
        )
    return launches


def selected(launches: Iterable[Launch], most_bytes: int) -> list[Launch]:
    """Launches of as many kernels as fit into so many bytes of memory, small ones first, the second
    of a kernel after the first of all others."""
    turns: dict[str, int] = {}
    ranked = []
    for launch in sorted(launches, key=lambda launch: launch.nbytes):
        kernel = hashlib.sha256(f"{launch.function}{launch.text}".encode()).hexdigest()
        turns[kernel] = turns.get(kernel, 0) + 1
        ranked.append((turns[kernel], launch.nbytes, len(ranked), launch))
    chosen, used = [], 0
    for _, size, _, launch in sorted(ranked, key=lambda r: r[:3]):
        if used + size <= most_bytes:
            used += size
            chosen.append(launch)
    return sorted(chosen, key=lambda launch: (launch.text, launch.function))


def main(folder: str, file: str, most_bytes: str = str(64 << 20)) -> None:
    launches = [with_types(launch) for launch in selected(read(Path(folder)), int(most_bytes))]
    write_packed(launches, Path(file))
    kernels = {(launch.text, launch.function) for launch in launches}
    size = Path(file).stat().st_size
    print(f"{len(launches)} launches of {len(kernels)} kernels in {size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
