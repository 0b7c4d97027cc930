"""Numbers that a recorded program takes out of tensors: what ``tensor.item()`` gives meanwhile.

Comparisons become guards, arithmetic stays in the graph, and a number that is returned or printed
is read when the program is replayed. ``int()``, an index and a key are guards, too: another whole
number is another way. Anything else (``math.sqrt``, ``float()``) would bake the number into the
program; then it is not compiled.
"""

from __future__ import annotations

import gc
import math
import operator
import types
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from ..backend.arrays import item
from ..backend.numpy import xp as np
from ..config import FollowedInteger, grad_mode, modes
from ..dtypes import float64, int64
from ..ops import shape
from ..tensor import Tensor, wrap


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
    if recorder is not None and number.tensor is not None:
        recorder.show(number.tensor, text, NumberText(spec))
    return text


class Number:
    """A Python number whose value depends on a tensor. ``tensor`` holds it in float64 or int64, in
    which Python computes; None when the recording is over."""

    __slots__ = ("__weakref__", "tensor", "value")

    def __init__(self, tensor: Tensor, value: Any):
        self.tensor: Any = tensor  # None when the recording is over
        self.value = value
        recorder = modes.local.recording
        if recorder is not None:
            recorder.numbers.append(weakref.ref(self))

    @staticmethod
    def of(tensor: Tensor) -> Number:
        """The number in a tensor of one element."""
        modes.local.recording.see(tensor)
        flat = shape.reshape(wrap(tensor.array), shape=())
        dtype = {"f": float64, "i": int64, "u": int64}.get(tensor.dtype.kind, tensor.dtype)
        wide = flat if flat.dtype == dtype else shape.cast(flat, dtype=dtype)
        return _number(wide, wide.array.item())

    @property
    def recorded(self) -> Tensor:
        """The tensor, for operations."""
        return self.tensor

    def _left(self, what: str):
        """The value, which leaves the program here."""
        recorder = modes.local.recording
        if recorder is not None and self.tensor is not None:
            recorder.read(f"{what} of item()")
        return self.value

    def __getattr__(self, name: str):
        """What else a number has: ``real``, ``is_integer``."""
        if name.startswith("__") or not hasattr(self.value, name):
            raise AttributeError(f"{type(self.value).__name__!r} object has no attribute {name!r}")
        return getattr(self._left(name), name)

    def __float__(self) -> float:
        return float(self._left("float()"))

    def __complex__(self) -> complex:
        return complex(self._left("complex()"))

    def __array__(self, dtype=None, copy=None):
        return np.array(self._left("NumPy's use"), dtype)

    def __int__(self) -> int:
        return self._whole("int()", "trunc", int(self.value))

    __trunc__ = __int__

    def __floor__(self) -> int:
        return self._whole("floor()", "floor", math.floor(self.value))

    def __ceil__(self) -> int:
        return self._whole("ceil()", "ceil", math.ceil(self.value))

    def __round__(self, digits: int | None = None):
        if digits is None:
            return self._whole("round()", "round", round(self.value))
        return round(self._left("round()"), digits)

    def __hash__(self) -> int:
        return hash(self._left("use as a key"))

    def _whole(self, what: str, rounding: str, value: int) -> int:
        """The value, rounded: a part of the way that the program goes."""
        recorder = modes.local.recording
        if recorder is not None and self.tensor is not None:
            if abs(value) > _EXACT:
                recorder.read(f"{what} of item()")
                return value
            with grad_mode(False):
                wide = _wide(self)
                whole = wide if wide.dtype.kind == "i" else getattr(wide, rounding)()
                recorder.whole(whole == value, value)
        return value

    def __repr__(self) -> str:
        return _text(self, None)

    def __format__(self, spec: str) -> str:
        return _text(self, spec)

    def _changed(self, function: Callable):
        value = function(self.value)
        return value if self.tensor is None else _number(function(_wide(self)), value)

    def __neg__(self):
        return self._changed(operator.neg)

    def __pos__(self):
        return self._changed(operator.pos)

    def __abs__(self):
        return self._changed(abs)

    def __bool__(self) -> bool:
        return bool(self.value if self.tensor is None else self.tensor != 0)


class Integer(Number, FollowedInteger):
    """One that is an integer, or a truth value."""

    __slots__ = ()

    def __index__(self) -> int:
        return self._whole("use as an index", "trunc", int(self.value))

    def __hash__(self) -> int:
        return hash(self._whole("use as a key", "trunc", int(self.value)))

    def __invert__(self):
        return ~self._left("~")


def _number(tensor: Tensor, value) -> Number:
    return (Integer if isinstance(value, int) else Number)(tensor, value)


_PLAIN = (int, bool, str, type(None))


def plain(value):
    """A value in which no number follows a tensor: integers become a part of the way."""
    if value.__class__ in _PLAIN:
        return value
    if isinstance(value, Integer):
        return operator.index(value)
    if isinstance(value, Number):
        return value._left("a parameter")
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if value.__class__ in (tuple, list):
        return value.__class__(map(plain, value))
    return {k: plain(v) for k, v in value.items()} if value.__class__ is dict else value


def end(numbers: Sequence[weakref.ref[Number]]) -> bool:
    """Let no number follow a tensor any more; whether somebody has kept one.

    Those in lists, dictionaries (globals, attributes) and variables of closures become what eager
    mode would have put there.
    """
    if any(ref() is not None for ref in numbers):
        gc.collect()  # some are parts of cycles
    kept = [n for ref in numbers if (n := ref()) is not None]
    for number in kept:
        number.tensor = None
        for holder in gc.get_referrers(number):
            if holder is not kept:
                _replace(holder, number)
    return bool(kept)


def _replace(holder, number: Number) -> None:
    """Put the value of a number in its place."""
    if holder.__class__ in (list, deque):
        for k, x in enumerate(holder):
            if x is number:
                holder[k] = number.value
    elif holder.__class__ is types.CellType:
        holder.cell_contents = number.value
    elif holder.__class__ is dict or hasattr(holder, "__dict__"):
        table = holder if holder.__class__ is dict else vars(holder)
        for k in [k for k, x in table.items() if x is number]:
            table[k] = number.value


def _wide(number) -> Tensor:
    """The tensor of a number; Python counts with truth as with 0 and 1."""
    t = number.tensor
    return t.long() if t.dtype.kind == "b" else t


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

_TRACKED = (Number, Integer, FloatArgument)
Real.register(Number)
Integral.register(Integer)


def _arithmetic(name: str, reflected: bool) -> Callable:
    function = getattr(operator, name)

    def method(self, other):
        if isinstance(other, Tensor):
            a, b = (other, self.tensor) if reflected else (self.tensor, other)
            return function(a, b)
        if other.__class__ not in (*_TRACKED, int, float, bool):
            return NotImplemented
        x, y = (other, self) if reflected else (self, other)
        found = function(_value(x), _value(y))  # raises what Python raises
        if _ended(x) or _ended(y):
            return found
        with grad_mode(False):
            a, b = _operand(x, found), _operand(y, found)
            if y.__class__ in _TRACKED and name in _DIVISIONS:
                bool(b != 0)  # else Python raises an error, where a tensor has infinity
            if y.__class__ in _TRACKED and name == "pow":
                bool(b >= 0)  # else powers of whole numbers are fractions
            wide = function(a, b)
            if name == "pow" and isinstance(found, float):
                bool(wide.isfinite())  # likewise, or gives a complex number
        if wide.dtype.kind == "f" and FloatArgument in (self.__class__, other.__class__):
            return FloatArgument.of(found, wide)
        return _number(wide, found)

    return method


_DIVISIONS = ("truediv", "floordiv", "mod")


def _value(x):
    return x.value if x.__class__ in _TRACKED else x


def _ended(x) -> bool:
    """Whether it is a number that follows no tensor any more."""
    return isinstance(x, Number) and x.tensor is None


def _operand(x, result):
    """A number for an operation with some result, which Python computes in float64 or exactly."""
    if x.__class__ not in _TRACKED:
        return float(x) if isinstance(result, float) else int(x)
    return x.tensor.double() if isinstance(result, float) else _wide(x)


def _outside(name: str) -> Callable:
    """An operation of whole numbers that leads out of the program."""

    def method(self, *args):
        return getattr(self._left(name), name)(*map(_value, args))

    return method


def _comparison(function: Callable) -> Callable:
    def method(self, other):
        if other.__class__ not in (*_TRACKED, int, float, bool):
            return NotImplemented
        if _ended(self) or _ended(other):
            return function(_value(self), _value(other))
        return bool(function(self.tensor, other.tensor if other.__class__ in _TRACKED else other))

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _class in _TRACKED:
        setattr(_class, f"__{_name}__", _arithmetic(_name, False))
        setattr(_class, f"__r{_name}__", _arithmetic(_name, True))
for _name in ("and", "or", "xor", "lshift", "rshift"):
    setattr(Integer, f"__{_name}__", _outside(f"__{_name}__"))
    setattr(Integer, f"__r{_name}__", _outside(f"__r{_name}__"))
for _class in _TRACKED:
    _class.__divmod__ = lambda self, other: (self // other, self % other)  # type: ignore
    _class.__rdivmod__ = lambda self, other: (other // self, other % self)  # type: ignore
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    for _class in _TRACKED:
        setattr(_class, f"__{_name}__", _comparison(getattr(operator, _name)))
for _name in (
    "__float__", "__int__", "__trunc__", "__floor__", "__ceil__", "__round__", "__hash__",
    "is_integer", "as_integer_ratio", "hex",
):  # fmt: skip
    setattr(FloatArgument, _name, _left(_name))
