"""Exceptions of gpugrad that neither Python nor torch has a class for, and helpers for messages.

Where torch raises a built-in class (``RuntimeError``, ``TypeError``, ``IndexError``,
``ValueError``), gpugrad raises the same class, so that handlers written for torch keep working.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

_PACKAGE = os.path.dirname(__file__) + os.sep  # pathlib would be a fifth of the import's time
_OURS = (_PACKAGE, "<gpugrad ")  # files, and names of generated code


class OutOfMemoryError(RuntimeError):
    """An allocation did not fit in the memory of its device."""


class LinAlgError(RuntimeError):
    """A matrix has no inverse, solution or factor."""


class DeviceError(RuntimeError):
    """A device that was asked for is missing, or operands are on different devices."""


class KernelError(RuntimeError):
    """A CUDA kernel does not compile or cannot be launched; the message shows the source."""


class SavedTensorError(RuntimeError):
    """A value needed for a gradient was changed in place after it was saved."""


class BatchedValueError(RuntimeError, AttributeError):
    """Something asked for the values of a tensor inside ``func.vmap``, where it stands for every
    example of a batch. Also an AttributeError, which the array it was asked of owes to Python."""


class CheckpointError(RuntimeError):
    """A checkpoint file is truncated, damaged, or was not written by gpugrad."""


_inside: dict[str, bool] = {}  # of files: whether they are ours


def user_frame(inside: int = 0):
    """The innermost caller outside the package; so many callers are known to be in it, and need not
    be looked at (0.3 us each)."""
    frame = sys._getframe(1 + inside)
    while True:
        file = frame.f_code.co_filename
        ours = _inside.get(file)
        if ours is None:
            ours = _inside[file] = file.startswith(_OURS)
        if not ours or frame.f_back is None:
            return frame
        frame = frame.f_back


def no_complex_gradients(what: str) -> RuntimeError:
    """The error where a gradient would pass through complex numbers."""
    return RuntimeError(
        f"{what}: gpugrad's derivatives lack the conjugates of torch's convention, and would be "
        "silently wrong. Compute with real and imaginary parts as tensors of their own."
    )


class Line:
    """A line of a program, for messages: as a pair, its file and number.

    Kept as an instruction of a code object: of the lines that are taken down, hardly one is ever
    shown, and to find its number takes 0.4 to 2 us.
    """

    __slots__ = ("code", "instruction")

    def __init__(self, code, instruction: int):
        self.code, self.instruction = code, instruction

    def __iter__(self):
        spans = self.code.co_lines()
        found = [n for start, end, n in spans if start <= self.instruction < end and n is not None]
        return iter((self.code.co_filename, found[0] if found else self.code.co_firstlineno))


def user_line(inside: int = 0) -> Line:
    """The line of the innermost caller outside the package; ``inside`` as for ``user_frame``."""
    frame = user_frame(1 + inside)
    return Line(frame.f_code, frame.f_lasti)


def at(line: Iterable | None) -> str:
    """`` at file:line`` or an empty string."""
    if line is None:
        return ""
    file, number = line
    return f" at {file}:{number}"
