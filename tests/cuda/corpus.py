"""Every CUDA kernel of the project, for the checks that need no GPU.

A module that makes kernels has a function ``corpus()`` that yields ``(name, source, function)`` for
each in representative variants: dtypes, ranks, layouts. Modules are found by their names
(``cuda*.py`` in ``gpugrad``). A kernel that may use more registers than the limit of
``test_nvrtc.py`` yields a fourth element, an ``Allowance`` as a dictionary, with the reason.
"""

from __future__ import annotations

import hashlib
import importlib
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


class Entry(NamedTuple):
    """A kernel: where it comes from, what it is, its whole text."""

    module: str
    name: str
    text: str
    function: str
    allowance: Allowance | None = None

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
    for given in make() if make else ():
        title, text, function, *more = given
        allowance = Allowance(**more[0]) if more else None
        yield Entry(name, title, expanded(text), function, allowance)


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
