"""``gpugrad bench``: the benchmarks of the repository, with their options.

They are not part of the installed package: they measure the libraries installed beside it, and a
speed is worth something only together with the code that was measured.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import gpugrad as gg
from gpugrad.utils.command import CommandError

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``python -m benchmarks``.

    Raises:
        CommandError: this gpugrad does not run from a clone of the repository.
    """
    _suite().add_arguments(parser)


def main(options: argparse.Namespace) -> int:
    """Run the benchmarks; return 1 if a result is wrong."""
    return int(_suite().main(options))


def _suite() -> Any:
    """The module behind ``python -m benchmarks``, from the clone that gpugrad was imported from."""
    package = Path(gg.__file__).parent
    root = package.parent
    if not (root / "benchmarks" / "workloads.py").exists():
        raise CommandError(
            f"the benchmarks are in the repository of gpugrad, not in the installed package "
            f"({package}): clone the repository and run `make bench` there, or "
            f"`pip install -e '.[bench]'` and `gpugrad bench`"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.__main__")
