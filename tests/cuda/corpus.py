"""Every CUDA kernel of the project, for the checks that need no GPU.

A module that makes kernels has a function ``corpus()`` that yields ``(name, source, function)`` for
each in representative variants: dtypes, ranks, layouts. Modules are found by their names
(``cuda*.py`` in ``gpugrad``). What may use more registers than ``test_nvrtc.py`` allows stands
in ``ALLOWED``, with the reason.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gpugrad


class Allowance(NamedTuple):
    """What one kernel may do that others may not; ``reason`` says why."""

    reason: str
    registers: int | None = None  # at most so many; None: the common limit
    spill_bytes: int = 0


# Pattern of an entry and its function -> what it may do.
ALLOWED = {
    r"cuda_convolution: .* 128x128/(convolve|filters)": Allowance(
        "64 sums per thread are kept in registers: the tile with the most arithmetic per byte", 168
    ),
    r"cuda_attention: .*/(forward|backward_\w+)": Allowance(
        "rows of queries or keys and their sums are kept in registers; one block per processor", 168
    ),
    r"cuda_corpus: (atan forward float64|logaddexp backward bfloat16)/elementwise": Allowance(
        "CUDA's atan and its division call subroutines, which save a register or two on the stack",
        spill_bytes=8,
    ),
    r"cuda_pooling: scatter float32 wide/.*": Allowance(
        "CUDA 12's compiler runs out of registers by one for sm_70, the others do not",
        spill_bytes=4,
    ),
}


class Entry(NamedTuple):
    """A kernel: where it comes from, what it is, its whole text."""

    module: str
    name: str
    text: str
    function: str

    @property
    def allowance(self) -> Allowance | None:
        found = (a for p, a in ALLOWED.items() if re.fullmatch(p, f"{self}/{self.function}"))
        return next(found, None)

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.function}\n{self.text}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.module.rpartition('.')[2]}: {self.name}"


def modules() -> list[str]:
    """Names of the modules that may have a corpus."""
    package = Path(gpugrad.__file__).parent
    files = sorted(package.rglob("cuda*.py"))
    return [".".join(("gpugrad", *f.relative_to(package).with_suffix("").parts)) for f in files]


def of_module(name: str) -> Iterator[Entry]:
    """The kernels of a module, sources with their includes expanded."""
    make = getattr(importlib.import_module(name), "corpus", None)
    for title, text, function in make() if make else ():
        yield Entry(name, title, expanded(text), function)


def expanded(text: str) -> str:
    """A source with the files it includes in their places, as kernels are compiled."""
    from gpugrad.codegen import cuda_module

    return text if text.startswith(("#line", "#define")) else cuda_module.source(text)


@cache
def entries() -> tuple[Entry, ...]:
    """All kernels, each text and function once."""
    seen: dict[str, Entry] = {}
    for module in modules():
        for entry in of_module(module):
            seen.setdefault(entry.key, entry)
    return tuple(seen.values())
