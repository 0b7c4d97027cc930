"""Numbers that a recorded program takes out of tensors: what ``tensor.item()`` gives meanwhile.

Comparisons become guards, arithmetic stays in the graph, and a number that is returned or printed
is read when the program is replayed. ``int()``, an index and a key are guards, too: another whole
number is another way. Anything else (``math.sqrt``, ``float()``) would bake the number into the
program; then it is not compiled.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend.arrays import item
from ..config import grad_mode, modes
from ..tensor import Tensor


class NumberText(NamedTuple):
    """The text of a number, formatted in some way; ``None`` is ``repr``."""

    spec: str | None

    def __call__(self, array) -> str:
        value = item(array)
        return repr(value) if self.spec is None else format(value, self.spec)


def _text(number: Number | FloatArgument, spec: str | None) -> str:
    """What a number is printed as."""
    value = number.value
    text = repr(value) if spec is None else format(value, spec)
    recorder = modes.local.recording
    if recorder is not None:
        recorder.show(number.tensor, text, NumberText(spec))
    return text


class Number:
    """A Python number whose value depends on a tensor. ``tensor`` holds it in float64 or int64, in
    which Python computes."""

    __slots__ = ("tensor", "value")

    def __init__(self, tensor: Tensor, value: Any):
        self.tensor, self.value = tensor, value

    @staticmethod
    def of(tensor: Tensor) -> Number:
        """The number in a tensor of one element."""
        with grad_mode(False):
            flat = tensor.detach().reshape(())
            kind = tensor.dtype.kind
            wide = flat.double() if kind == "f" else flat.long() if kind in "iu" else flat
        return Number(wide, wide.array.item())

    @property
    def recorded(self) -> Tensor:
        """The tensor, for operations."""
        return self.tensor

    def _left(self, what: str):
        """The value, which leaves the program here."""
        recorder = modes.local.recording
        if recorder is not None:
            recorder.read(f"{what} of item()")
        return self.value

    def __float__(self) -> float:
        return float(self._left("float()"))

    def __int__(self) -> int:
        return self._whole("int()", int(self.value))

    def __index__(self) -> int:
        return self._whole("use as an index", operator.index(self.value))

    def __hash__(self) -> int:
        if isinstance(self.value, int):
            self._whole("use as a key", int(self.value))
        else:
            self._left("use as a key")
        return hash(self.value)

    def _whole(self, what: str, value: int) -> int:
        """The value rounded towards zero: a part of the way that the program goes."""
        recorder = modes.local.recording
        if recorder is not None:
            if abs(value) > _EXACT:
                recorder.read(f"{what} of item()")
            else:
                recorder.whole(self.tensor, value)
        return value

    def __repr__(self) -> str:
        return _text(self, None)

    def __format__(self, spec: str) -> str:
        return _text(self, spec)

    def __round__(self, digits: int | None = None):
        return round(self._left("round()"), digits)

    def __neg__(self) -> Number:
        return Number(-self.tensor, -self.value)

    def __abs__(self) -> Number:
        return Number(self.tensor.abs(), abs(self.value))

    def __bool__(self) -> bool:
        return bool(self.tensor != 0)


class FloatArgument(float):
    """A float among the arguments of a function that is recorded: an input of the program.

    It is a float for everybody who asks. What Python's and NumPy's own code do with it cannot be
    seen; therefore two recordings with different numbers must give the same graph.
    """

    __slots__ = ("tensor",)
    tensor: Tensor

    @classmethod
    def of(cls, value: float, tensor: Tensor) -> FloatArgument:
        """The float with the tensor that stands for it."""
        self = cls(value)
        self.tensor = tensor
        return self

    @property
    def value(self) -> float:
        """An ordinary float."""
        return float.__float__(self)

    @property
    def recorded(self) -> Tensor:
        """The tensor, for operations."""
        return self.tensor

    def __neg__(self):
        return FloatArgument.of(-self.value, -self.tensor)

    def __pos__(self):
        return self

    def __abs__(self):
        return FloatArgument.of(abs(self.value), self.tensor.abs())

    def __bool__(self) -> bool:
        return bool(self.tensor != 0)

    def __repr__(self) -> str:
        return _text(self, None)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return _text(self, spec)

    __hash__ = float.__hash__  # replaced below, as the comparisons take it away


def _left(name: str) -> Callable:
    """A method of float that leads out of the program."""
    plain = getattr(float, name)

    def method(self, *args):
        recorder = modes.local.recording
        if recorder is not None:
            recorder.read(f"{name} of a number")
        return plain(self, *args)

    return method


# Whole numbers that float64 holds exactly.
_EXACT = 1 << 53

_TRACKED = (Number, FloatArgument)


def _arithmetic(function: Callable, reflected: bool) -> Callable:
    def method(self, other):
        if isinstance(other, Tensor):
            a, b = (other, self.tensor) if reflected else (self.tensor, other)
            return function(a, b)
        other_tensor: Any = other
        other_value: Any = other
        if other.__class__ in _TRACKED:
            other_tensor, other_value = other.tensor, other.value
        elif other.__class__ not in (int, float, bool):
            return NotImplemented
        a, b = (other_tensor, self.tensor) if reflected else (self.tensor, other_tensor)
        x, y = (other_value, self.value) if reflected else (self.value, other_value)
        with grad_mode(False):
            wide = function(a, b)
        found = function(x, y)
        if isinstance(found, float) and wide.dtype.kind == "f":
            wide = wide.double()
            if FloatArgument in (self.__class__, other.__class__):
                return FloatArgument.of(found, wide)
        return Number(wide, found)

    return method


def _comparison(function: Callable) -> Callable:
    def method(self, other):
        if other.__class__ in _TRACKED:
            other = other.tensor
        elif other.__class__ not in (int, float, bool):
            return NotImplemented
        return bool(function(self.tensor, other))

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    for _class in _TRACKED:
        setattr(_class, f"__{_name}__", _arithmetic(getattr(operator, _name), False))
        setattr(_class, f"__r{_name}__", _arithmetic(getattr(operator, _name), True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    for _class in _TRACKED:
        setattr(_class, f"__{_name}__", _comparison(getattr(operator, _name)))
for _name in (
    "__float__", "__int__", "__trunc__", "__floor__", "__ceil__", "__round__", "__hash__",
    "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__", "__divmod__", "__rdivmod__",
    "is_integer", "as_integer_ratio", "hex",
):  # fmt: skip
    setattr(FloatArgument, _name, _left(_name))
