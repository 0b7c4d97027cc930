"""Where the inputs of a graph come from at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..tensor import Tensor


class Argument(NamedTuple):
    """A leaf of the arguments, by its place among them."""

    place: int

    def __str__(self) -> str:
        return f"argument {self.place}"


class ArgumentGrad(NamedTuple):
    """The gradient of a leaf of the arguments, as it is when the program begins."""

    place: int

    def __str__(self) -> str:
        return f"gradient of argument {self.place}"


class Live:
    """A tensor that the program reaches by itself: a parameter, a buffer, optimizer state."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def read(self):
        return self.tensor.array

    def __eq__(self, other) -> bool:
        return other.__class__ is self.__class__ and other.tensor is self.tensor

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "parameter" if self.tensor.requires_grad else "tensor"


class LiveGrad(Live):
    """The gradient of a tensor, as it is when the program begins."""

    __slots__ = ()

    def read(self):
        grad = self.tensor.grad
        return None if grad is None else grad.array

    def __str__(self) -> str:
        return "gradient"


class LiveArray:
    """An array that the program reaches by itself."""

    __slots__ = ("array",)

    def __init__(self, array):
        self.array = array

    def read(self):
        return self.array

    def __eq__(self, other) -> bool:
        return other.__class__ is LiveArray and _same_memory(other.array, self.array)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "array"


def _same_memory(a, b) -> bool:
    """Whether two arrays are one, or the same view of one."""
    if a is b:
        return True
    owned = a.base is None or a.base is not b.base
    return not owned and _layout(a) == _layout(b)


def _layout(a) -> tuple:
    address = a.ctypes.data if hasattr(a, "ctypes") else a.data.ptr
    return address, a.shape, a.strides, a.dtype


class Host:
    """Python code of the library that runs before every replay, in the order of the recording, and
    gives ``count`` numbers or arrays: learning rates, step counts, random numbers.

    ``key`` tells whether two recordings mean the same; ``undo`` takes back what one call did.
    ``generator`` is that of random numbers, which may be drawn elsewhere instead.
    """

    __slots__ = ("call", "generator", "key", "name", "undo")

    def __init__(
        self,
        name: str,
        key: Any,
        call: Callable[[], Any],
        undo: Callable | None = None,
        generator: Any = None,
    ):
        self.name, self.key, self.call, self.undo = name, key, call, undo
        self.generator = generator

    def __eq__(self, other) -> bool:
        return other.__class__ is Host and (self.name, self.key) == (other.name, other.key)

    __hash__ = None  # type: ignore[assignment]


class HostResult:
    """One of the numbers or arrays of a ``Host``."""

    __slots__ = ("host", "place")

    def __init__(self, host: Host, place: int):
        self.host, self.place = host, place

    def __eq__(self, other) -> bool:
        same = other.__class__ is HostResult and self.place == other.place
        return same and self.host == other.host

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.host.name} {self.place}"


def tensor_of(source, leaves: Sequence):
    """The tensor whose memory a source reads; None or an array where there is no tensor."""
    if source.__class__ is Argument:
        return leaves[source.place]
    if source.__class__ is ArgumentGrad:
        return leaves[source.place].grad
    tensor = getattr(source, "tensor", None)
    return tensor.grad if source.__class__ is LiveGrad and tensor is not None else tensor
