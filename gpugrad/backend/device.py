"""Devices by name."""

from __future__ import annotations

import threading

from ..config import settings
from ..errors import DeviceError


class device:
    """A place where tensors live: ``device("cpu")``, ``device("cuda")``, ``device("cuda", 1)``,
    ``device("cuda:1")``.

    Also a context: tensors made inside ``with device("cuda:0"):`` live there unless they say
    otherwise.
    ``device("auto")`` is CUDA where a GPU and CuPy are present, else the CPU.

    >>> import gpugrad as gg
    >>> gg.device("cpu")
    device(type='cpu')
    """

    __slots__ = ("index", "type")

    def __init__(self, type: str | device | int, index: int | None = None):
        if isinstance(type, device):
            type, index = type.type, type.index if index is None else index
        elif isinstance(type, int) and not isinstance(type, bool):
            type, index = "cuda", type
        if not isinstance(type, str):
            raise TypeError(f"device() takes a name like 'cpu' or 'cuda:0', got {type!r}")
        if type == "auto":
            from .cupy import is_available

            type = "cuda" if is_available() else "cpu"
        if ":" in type:
            type, _, number = type.partition(":")
            if not number.isdecimal():
                raise RuntimeError(
                    f"Invalid device string: {type}:{number} (expected e.g. 'cuda:0')"
                )
            index = int(number)
        if type not in ("cpu", "cuda"):
            raise RuntimeError(
                f"Expected one of cpu, cuda device type at start of device string: {type}"
            )
        self.type = type
        self.index = index

    def __repr__(self):
        number = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{number})"

    def __str__(self):
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other):
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self):
        return hash((self.type, self.index))

    def __reduce__(self):
        return device, (self.type, self.index)

    def __enter__(self):
        _local.outer.append(_local.current)
        _local.current = self
        return self

    def __exit__(self, *exc):
        _local.current = _local.outer.pop()


class _Local(threading.local):
    """The contexts open in a thread; a device object may be shared between threads."""

    current: device | None = None

    def __init__(self):
        self.outer: list[device | None] = []


_local = _Local()
CPU = device("cpu")


def as_device(d) -> device:
    """The device meant by an argument ``device=``; None is the current default."""
    if d is None:
        return _local.current or settings.default_device or CPU
    if isinstance(d, device):
        return d
    if d.__class__ is not str or d == "auto":
        return device(d)
    found = _named.get(d)
    if found is None:
        found = _named[d] = device(d)
    return found


_named: dict[str, device] = {}  # by what they were called, which is a handful of names


def set_default_device(d) -> None:
    """Make new tensors live on this device unless they say otherwise; None goes back to the CPU."""
    settings.default_device = None if d is None else device(d)


def mixed_devices(op_name, arrays_and_devices) -> DeviceError:
    """The error for operands on different devices."""
    places = ", ".join(f"{shape} on {d}" for shape, d in arrays_and_devices)
    return DeviceError(
        f"Expected all tensors to be on the same device, but {op_name} got {places}. "
        "Move one of them with .to(device)."
    )
