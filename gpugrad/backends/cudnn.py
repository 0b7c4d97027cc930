"""What cuDNN may do: ``gpugrad.backends.cudnn``, as ``torch.backends.cudnn``.

``enabled``: whether convolutions use cuDNN where it is installed. ``deterministic`` (on, unlike
torch's): only engines that give the same bits every time. ``allow_tf32`` (off, unlike torch's):
engines that round float32 operands to TensorFloat-32. ``benchmark``: time all engines when a shape
is first seen and keep the fastest.

>>> import gpugrad as gg
>>> gg.backends.cudnn.deterministic
True
>>> with gg.backends.cudnn.flags(enabled=False):
...     gg.backends.cudnn.enabled
False
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType

from ..backend import cudnn as backend

enabled: bool
benchmark: bool
deterministic: bool
allow_tf32: bool
_NAMES = ("enabled", "benchmark", "deterministic", "allow_tf32")


def is_available() -> bool:
    """Whether cuDNN and nvidia-cudnn-frontend are installed: ``pip install gpugrad[cudnn]``."""
    return backend.module() is not None


def version() -> int | None:
    """The version of cuDNN, 92800 for 9.28.0; None without it."""
    return backend.version()


@contextmanager
def flags(**values: bool):
    """Set switches inside a ``with`` block."""
    module = sys.modules[__name__]
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _switch(name: str) -> property:
    def read(self) -> bool:
        return getattr(backend.switches, name)

    def write(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"expected True or False, got {value!r}")
        setattr(backend.switches, name, value)

    return property(read, write)


# A module whose attributes of these names are switches.
_Module = type("_Module", (ModuleType,), {name: _switch(name) for name in _NAMES})
sys.modules[__name__].__class__ = _Module
