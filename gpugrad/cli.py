"""The command ``gpugrad`` (also ``python -m gpugrad``).

A subcommand is a row of :data:`COMMANDS`: name, one line of help, and the module behind it with
two functions, ``add_arguments(parser)`` and ``main(options) -> exit code``; both may raise
:class:`~gpugrad.utils.command.CommandError`. Only the module of the command in use is imported.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from gpugrad.utils.command import CommandError

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    help: str
    module: str


COMMANDS: dict[str, Command] = {
    "train": Command("train LeNet (or an MLP) on handwritten digits", "gpugrad.train.command"),
    "bench": Command("measure gpugrad beside other libraries", "gpugrad.utils.benchmarks"),
    "info": Command("versions, devices, BLAS, and what is missing", "gpugrad.utils.environment"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 done, 1 failed, 2 wrong usage or 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # the options before the command have no values
    name = next((a for a in arguments if not a.startswith("-")), "")
    try:
        options = _parser(name).parse_args(arguments)
        return int(importlib.import_module(COMMANDS[name].module).main(options))
    except CommandError as error:
        print(f"gpugrad {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"gpugrad {name}: interrupted", file=sys.stderr)
        return 130


def _parser(used: str) -> argparse.ArgumentParser:
    """The parser, with the options of the command that is used."""
    parser = argparse.ArgumentParser(
        prog="gpugrad",
        description="Gradients for NumPy and CuPy programs, with PyTorch's API.",
        epilog="'gpugrad COMMAND --help' describes the options of a command.",
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.help, description=command.help[0].upper() + command.help[1:] + "."
        )
        if name == used:
            importlib.import_module(command.module).add_arguments(subparser)
    return parser


class _ShowVersion(argparse.Action):
    """Print the version; gpugrad is imported only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import gpugrad

        print(f"gpugrad {gpugrad.__version__}")
        parser.exit()
