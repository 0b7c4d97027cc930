"""Launches under ThreadSanitizer, in a process of their own: which lines of a kernel race."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import compiler
from .launches import Launch, Pointer, pack

_NO_RANDOM_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE: older ThreadSanitizers need fixed addresses


def check(launches: Sequence[Launch], timeout: float = 600) -> list[str]:
    """For each launch the report of ThreadSanitizer or of the runtime, "" where all is well.

    Few threads suffice: of a grid with more than 512 only the first blocks run.
    """
    built = compiler.build_all([launch.text for launch in launches], threads=True)
    for result in built:
        if isinstance(result, Exception):
            raise result
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i:06}") for i in range(len(launches))]
        for file, launch, (module, _) in zip(files, launches, built):
            file.write_bytes(pack(launch, module))
        return _run(files, timeout)


def _run(files: Sequence[Path], timeout: float) -> list[str]:
    """One process for all; after one that ends early the next process takes the rest."""
    reports: list[str] = []
    while len(reports) < len(files):
        todo = files[len(reports) :]
        done = subprocess.run(
            [str(_driver()), *map(str, todo)],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            preexec_fn=_fixed_addresses,
            env=os.environ | {"TSAN_OPTIONS": "exitcode=0 report_signal_unsafe=0"},
        )
        said = re.sub(r"^ThreadSanitizer: reported .*\n", "", done.stderr, flags=re.MULTILINE)
        before, *parts = said.split("race_check: /")
        reports += [part.partition("\n")[2].strip() for part in parts]
        if done.returncode and not (parts and reports[-1]):
            raise compiler.ShimError(f"race_check ended with {done.returncode}:\n{before or parts}")
    return reports


def _driver() -> Path:
    source = compiler.HERE / "race_check.cpp"
    flags = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread"]
    key = compiler.key_of(True, flags, source.read_text())
    target = compiler.cache_folder() / f"race_check-{key}"
    made = compiler.made(target, [compiler.compiler(), *flags, str(source), "-ldl", "-o"])
    made.chmod(0o755)
    return made


def _fixed_addresses() -> None:
    ctypes.CDLL(None).personality(_NO_RANDOM_ADDRESSES)  # where that is forbidden, try without


def available() -> bool:
    """Whether g++ has ThreadSanitizer and it runs here."""
    try:
        return subprocess.run([str(_driver())], preexec_fn=_fixed_addresses).returncode == 0
    except (compiler.ShimError, OSError):
        return False


__all__ = ["Launch", "Pointer", "available", "check"]
