"""For code that is part of compiled programs and keeps counts in Python: ``gpugrad.compiler``.

A replayed program does not run the Python it was recorded from. Optimizers, schedules and
generators, which count in Python, register what has to run before every replay.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .config import modes
from .tensor import Tensor


class Changed(RuntimeError):
    """What a compiled program was recorded with is no longer so: it is recorded anew."""


class _Counter:
    """A number that only grows."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


# How often an attribute of a module was written: compiled programs look at the attributes of their
# modules (``training``, ``p``) again when it has changed.
module_writes = _Counter()


def is_compiling() -> bool:
    """Whether this thread is recording a compiled program, as ``torch.compiler.is_compiling``.

    >>> import gpugrad as gg
    >>> gg.compiler.is_compiling()
    False
    """
    return bool(modes.special) and modes.local.recording is not None


def asked_before_replay(
    name: str, owner: Any, numbers: Callable[[], list[float]], undo: Callable[[], None]
) -> AbstractContextManager[None]:
    """A context in which the numbers of ``foreach`` updates are those of ``numbers()``.

    Before every replay ``numbers()`` is called. It returns the numbers of all updates in the
    ``with`` block in their order (``update.values(scalars)``), advances the counts of ``owner``,
    and raises :class:`Changed` if the recorded updates are no longer right. ``undo`` takes back one
    call, for replays that turn out to go another way.
    """
    if not is_compiling():
        return nullcontext()
    return modes.local.recording.ask(name, owner, numbers, undo)


def repeated_before_replay(
    name: str, owner: Any, function: Callable[[], None], undo: Callable[[], None] | None = None
) -> None:
    """Call a function now, and, if a program is being recorded, before each of its replays."""
    function()
    if is_compiling():
        modes.local.recording.repeat(name, owner, function, undo)


def not_replayed(what: str) -> None:
    """Let a function that does this run eagerly: it decides in Python, by values."""
    if is_compiling():
        modes.local.recording.fail(f"{what} decides in Python")


def gradient(tensor: Tensor) -> Tensor | None:
    """``tensor.grad``, of which a compiled program knows from now on whose it is: a replay reads
    the gradient that the tensor has then."""
    if is_compiling():
        modes.local.recording.gradient(tensor)
    return tensor.grad


def forget_gradient(tensor: Tensor) -> None:
    """``tensor.grad = None``; in every replay of a compiled program, too."""
    if is_compiling():
        modes.local.recording.touch(tensor)
    tensor.grad = None


__all__ = [
    "Changed",
    "asked_before_replay",
    "forget_gradient",
    "gradient",
    "is_compiling",
    "not_replayed",
    "repeated_before_replay",
]
