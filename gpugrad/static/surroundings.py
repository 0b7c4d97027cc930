"""What a function reads beside tensors and arguments, and a replay would not read again.

A walk begins at the function and at the objects among its arguments. It goes through closures,
globals, methods, objects, containers and modules as long as they are the user's, not a library's.
Every place where something else may stand at the next call becomes a ``Read``: of an object only
attributes whose names occur in code that was met. What the reads find is part of what a variant is
looked up by.
"""

from __future__ import annotations

import collections
import dis
import functools
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import Any, NamedTuple

from ..backend.arrays import _ndarray, is_array
from ..compiler import module_writes
from ..tensor import Tensor

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MISSING = type("Missing", (), {"__repr__": lambda _: "nothing"})()
_CONTAINERS = (tuple, list, dict, set, frozenset, collections.deque)
_NAMESPACES = {("types", "SimpleNamespace"), ("argparse", "Namespace")}
# Containers with more entries are looked at by their length alone; a walk ends after so many reads.
_ENTRIES, _READS = 1000, 10_000
# Methods of an object that ran when it was made, or that say what it is.
_NOT_CALLED = {"__init__", "__new__", "__init_subclass__", "__repr__", "__str__", "__reduce__"}
_OWN = __name__.partition(".")[0]
_LIBRARIES = {*sys.stdlib_module_names, _OWN, "numpy", "cupy"} - {"__main__"}
_INSTALLED = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


class Identity:
    """An object as itself, whatever it says of equality; kept, so that its identity comes once."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __eq__(self, other) -> bool:
        return other.__class__ is Identity and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _key(value):
    """A part of a key: plain values, and tuples of such, by value; others by identity."""
    if value.__class__ is float:
        return (float, value.hex())  # tells -0.0 from 0.0, and a NaN is itself
    if value.__class__ in _PLAIN:
        return (value.__class__, value)
    if value.__class__ is tuple and all(v.__class__ in _PLAIN for v in value):
        return tuple([_key(v) for v in value])
    return Identity(value)


# ------------------------------------------------------------------------------------------------
# places


class Read(NamedTuple):
    """A place that is read: ``cell`` of a closure, ``item`` of a dict, ``attribute`` of an object,
    ``contents`` of a container, or its ``length``, ``values`` of an array. ``path`` is what a
    message calls it."""

    kind: str
    holder: Any
    name: Any
    path: str

    def get(self):
        """What is there now."""
        kind, holder = self.kind, self.holder
        if kind == "item":
            return holder.get(self.name, _MISSING)
        if kind == "attribute":
            return getattr(holder, self.name, _MISSING)
        if kind == "contents":
            return _contents(holder)
        if kind == "length":
            return len(holder)
        if kind == "values":
            return holder.tobytes()
        return _cell_contents(holder)

    def condition(self, name: Callable[[Any], str]) -> str:
        """A Python expression that is true while the same is there; ``name(value)`` gives the name
        of a value in it."""
        holder, now = name(self.holder), name(self.get())
        if self.kind == "item":
            return f"{holder}.get({self.name!r}) is {now}"
        if self.kind == "attribute":
            return f"getattr({holder}, {self.name!r}, {name(_MISSING)}) is {now}"
        if self.kind == "contents":
            return f"{name(_same)}({name(_contents)}({holder}), {now})"
        if self.kind == "length":
            return f"len({holder}) == {now}"
        if self.kind == "values":
            return f"{holder}.tobytes() == {now}"
        if self.get() is _MISSING:
            return f"{name(_cell_contents)}({holder}) is {now}"
        return f"{holder}.cell_contents is {now}"


def _cell_contents(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return _MISSING


def _contents(container) -> tuple:
    if isinstance(container, dict):
        return (*container.keys(), *container.values())
    return tuple(container)


def _same(a: tuple, b: tuple) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


# ------------------------------------------------------------------------------------------------
# whose code it is


def _is_known(module: str | None) -> bool:
    """Whether a module is part of Python, of NumPy, of CuPy, or of this package."""
    return not module or module.partition(".")[0] in _LIBRARIES


@functools.cache
def _is_library(module: str | None) -> bool:
    """Whether a module is known, or installed."""
    if not module or _is_known(module):
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return file.startswith(_INSTALLED)


def _is_module(value) -> bool:
    return hasattr(type(value), "named_modules")


class _Names(NamedTuple):
    """Names in a piece of code and the functions in it: of globals, and of attributes."""

    of_globals: frozenset[str]
    of_attributes: frozenset[str]


@functools.lru_cache(1000)
def _names_in(code: types.CodeType) -> _Names:
    found: tuple[set[str], set[str]] = (set(), set())
    for instruction in dis.get_instructions(code):
        if instruction.arg is None or instruction.opcode not in dis.hasname:
            continue
        is_global = instruction.opname.endswith(("_GLOBAL", "_NAME"))
        found[not is_global].add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for names, inner in zip(found, _names_in(constant), strict=True):
                names.update(inner)
    return _Names(*map(frozenset, found))


def _is_generator(value) -> bool:
    """Whether it is a generator of random numbers of Python's or NumPy's."""
    home = type(value).__module__
    return home == "random" or (home.startswith("numpy.random.") and hasattr(value, "shuffle"))


def _position(generator) -> bytes | None:
    """Where a generator is; None if it does not say."""
    try:
        if hasattr(generator, "bit_generator"):
            return pickle.dumps(generator.bit_generator.state)
        read = getattr(generator, "getstate", None) or generator.get_state
        return pickle.dumps(read())
    except NotImplementedError:  # of the operating system
        return None


# ------------------------------------------------------------------------------------------------
# the walk


class _Walk:
    """Goes through everything that may be read from a root on, once."""

    def __init__(self, root, path: str, names: set[str], apart: Iterable[int]):
        self.names = names  # of attributes, in the code that was met by this or earlier walks
        self.reads: list[Read] = []
        self.modules: list[Any] = []
        self.generators: list[Any] = []
        self._apart = apart  # identities of what is not looked at
        self._seen: dict[int, Any] = {}
        self._read_already: set[tuple] = set()
        self._waiting = collections.deque([(root, path)])
        while self._waiting and len(self.reads) < _READS:
            self._visit(*self._waiting.popleft())
        self.met = frozenset(self._seen)  # identities

    def _visit(self, value, path: str) -> None:
        cls = value.__class__
        if cls in _PLAIN or isinstance(value, Tensor):
            return
        if id(value) in self._seen or id(value) in self._apart:
            return
        self._seen[id(value)] = value
        if is_array(value):
            if cls is _ndarray and value.size <= _ENTRIES and value.dtype.kind in "biufc":
                self._read("values", value, None, path)
        elif isinstance(value, types.FunctionType):
            self._function(value, path)
        elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
            self._later(path, value.__self__, getattr(value, "__func__", None))
        elif isinstance(value, (staticmethod, classmethod)):
            self._later(path, value.__func__)
        elif isinstance(value, property):
            self._later(path, value.fget)
        elif isinstance(value, functools.partial):
            self._later(path, value.func, *value.args, *value.keywords.values())
        elif isinstance(value, types.ModuleType):
            self._python_module(value, path)
        elif isinstance(value, type):
            self._class(value, path)
        elif _is_generator(value):
            self.generators.append(value)
        elif callable(value) and hasattr(value, "__wrapped__"):
            self._later(path, value.__wrapped__)  # decorated; another compiled function
        elif _is_module(value):
            self._nn_module(value, path)
        else:
            if isinstance(value, _CONTAINERS):
                self._container(value, path)
            named = (cls.__module__, cls.__name__)
            if named in _NAMESPACES or not _is_library(cls.__module__):
                self._object(value, path)
            elif not _is_known(cls.__module__):
                self._installed_object(value, path)

    def _later(self, path: str, *values) -> None:
        self._waiting.extend([(value, path) for value in values])

    def _read(self, kind: str, holder, name, path: str) -> None:
        place = (kind, id(holder), name)
        if place not in self._read_already:
            self._read_already.add(place)
            self.reads.append(Read(kind, holder, name, path))
            if kind not in ("contents", "length", "values"):
                self._later(path, self.reads[-1].get())

    def _function(self, function: types.FunctionType, path: str) -> None:
        if _is_library(function.__module__):
            self._later(path, getattr(function, "__wrapped__", None))
            return
        code, known = function.__code__, function.__globals__
        names = _names_in(code)
        self.names |= names.of_attributes
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._read("cell", cell, None, name)
        for name in sorted(names.of_globals & known.keys()):
            self._read("item", known, name, name)
        self._later(path, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())

    def _container(self, container, path: str) -> None:
        few = len(container) <= _ENTRIES
        if not isinstance(container, (tuple, frozenset)):
            self._read("contents" if few else "length", container, None, path)
        if few:
            self._later(path, *(container.values() if isinstance(container, dict) else container))

    def _python_module(self, module: types.ModuleType, path: str) -> None:
        if module.__name__ == "random":
            self._later(path, module._inst)  # type: ignore[attr-defined]
        elif module.__name__ in ("numpy", "numpy.random") and "numpy.random" in sys.modules:
            if "random" in self.names or module.__name__ == "numpy.random":
                self._later(path, sys.modules["numpy.random"].mtrand._rand)
        elif not _is_library(module.__name__):
            for name in sorted(self.names & vars(module).keys()):
                self._read("attribute", module, name, f"{path}.{name}")

    def _class(self, cls: type, path: str, without: Iterable[str] = ()) -> None:
        """What its methods do, and its own attributes."""
        for base in cls.__mro__:
            if _is_library(base.__module__):
                continue
            for name, value in list(vars(base).items()):
                if name in without or not (name in self.names or name.startswith("__")):
                    continue
                if callable(value) or isinstance(value, (property, staticmethod, classmethod)):
                    self._later(path, value)
                elif name in self.names and not hasattr(value, "__get__"):
                    self._read("attribute", cls, name, f"{path}.{name}")

    def _object(self, value, path: str) -> None:
        """Its attributes, in a dict or in slots, and those of its class, which it may override."""
        self._class(value.__class__, path, _NOT_CALLED)
        own = set(getattr(value, "__dict__", ()))
        for base in value.__class__.__mro__:
            own.update(n for n, v in vars(base).items() if _is_attribute(v))
        for name in sorted(self.names & own):
            self._read("attribute", value, name, f"{path}.{name}")

    def _installed_object(self, value, path: str) -> None:
        """Its own numbers and strings: the code of its methods is not followed."""
        for name, attribute in sorted(getattr(value, "__dict__", {}).items()):
            if attribute.__class__ in _PLAIN:
                self._read("attribute", value, name, f"{path}.{name}")

    def _nn_module(self, root, path: str) -> None:
        """Its own attributes and its submodules are looked at when any module was written to."""
        for name, module in root.named_modules(prefix=path):
            if module is not root and id(module) in self._seen:
                continue
            self._seen[id(module)] = module
            self.modules.append(module)
            if module._hooks is not None:
                self._later(name, *vars(module._hooks).values())
            self._class(module.__class__, name, _NOT_CALLED)
            if not _is_library(module.__class__.__module__):
                for attribute in sorted(self.names & vars(module).keys()):
                    self._later(f"{name}.{attribute}", vars(module)[attribute])


def _is_attribute(value) -> bool:
    """Whether what a class has under some name is data: a slot, or a value for all instances."""
    return value.__class__ is types.MemberDescriptorType or not hasattr(value, "__get__")


class _Surrounding:
    """What is read from one root on."""

    def __init__(self, root, path: str, names: set[str], apart: Iterable):
        count = -1
        while count < len(names):  # once more if code was met late that has other names
            count = len(names)
            walk = _Walk(root, path, names, apart)
        self.root = root  # kept, so that its identity comes once
        self.reads, self.generators, self.met = walk.reads, walk.generators, walk.met
        self._modules = walk.modules
        self._of_modules = _Attributes(())
        self._seen = -1

    def values(self) -> tuple:
        """What is there now, as parts of a key."""
        if self._modules and self._seen != module_writes.count:  # one of all modules was written to
            self._seen = module_writes.count
            now = [(name, _key(v)) for m in self._modules for name, v in vars(m).items()]
            if tuple(now) != self._of_modules.values:
                self._of_modules = _Attributes(tuple(now))
        found = [(read.kind, read.get()) for read in self.reads]
        keys = [tuple(map(_key, v)) if kind == "contents" else _key(v) for kind, v in found]
        return (self._of_modules, *keys)

    def difference(self, before: tuple) -> str | None:
        """The path of what is there no more, or is another."""
        modules, *now = self.values()
        for read, old, new in zip(self.reads, before[1:], now, strict=True):
            if old != new:
                return read.path
        if modules == before[0]:
            return None
        pairs = zip(before[0].values, modules.values, strict=False)
        name = next((new[0] for old, new in pairs if old != new), "an attribute")
        return f"self.{name}"


class _Attributes:
    """The attributes of many modules, hashed once."""

    __slots__ = ("hash", "values")

    def __init__(self, values: tuple):
        self.values, self.hash = values, hash(values)

    def __eq__(self, other) -> bool:
        return self is other or self.values == other.values

    def __hash__(self) -> int:
        return self.hash


class Surroundings:
    """What a function reads beside tensors and plain arguments, as it is now."""

    def __init__(self, function: Callable):
        self.function = function
        self._names = {"forward"}  # which the call of a module leads to
        self._apart: dict[int, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Walk again: other objects may be reached now."""
        self._own = _Surrounding(self.function, "self", self._names, self._apart)
        self._of_arguments: dict[int, _Surrounding] = {}

    def leave_out(self, objects: Iterable) -> None:
        """Do not look at objects that programs look at: arrays that they read at every call, and
        owners of counts, as optimizers are."""
        parts = {id(o): o for o in objects if id(o) not in self._apart}
        self._apart.update(parts)
        if any(parts.keys() & around.met for around in (self._own, *self._of_arguments.values())):
            self.refresh()

    @property
    def reads(self) -> list[Read]:
        """What the function reads by itself, apart from modules."""
        return self._own.reads

    def values(self) -> tuple:
        """What the function reads by itself, as part of a key."""
        return self._own.values()

    def of(self, argument) -> tuple:
        """What is read from an argument on, as part of a key."""
        found = self._around(argument)
        return () if found is None else found.values()

    def reads_of(self, argument) -> list[Read]:
        """What is read from an argument on, apart from modules."""
        found = self._around(argument)
        return [] if found is None else found.reads

    def _around(self, argument) -> _Surrounding | None:
        if argument.__class__ in _PLAIN or isinstance(argument, Tensor) or is_array(argument):
            return None
        known = self._of_arguments
        found = known.get(id(argument))
        if found is None:
            if len(known) >= _ENTRIES:  # another object at every call
                known.clear()
            path = type(argument).__name__
            found = known[id(argument)] = _Surrounding(argument, path, self._names, self._apart)
        return found

    def _all(self, leaves: Sequence) -> list[_Surrounding]:
        found = [self._around(leaf) for leaf in leaves]
        return [self._own, *[f for f in found if f is not None]]

    def snapshot(self, leaves: Sequence) -> Snapshot:
        """What a call with these arguments reads, and where random numbers come from."""
        parts = self._all(leaves)
        generators = [g for part in parts for g in part.generators]
        return Snapshot(parts, [p.values() for p in parts], [(g, _position(g)) for g in generators])


class Snapshot(NamedTuple):
    """What a call reads, as it was at some time."""

    parts: list[_Surrounding]
    values: list[tuple]
    positions: list[tuple[Any, bytes | None]]

    def changed(self) -> str | None:
        """What is another than it was."""
        found = [part.difference(old) for part, old in zip(self.parts, self.values, strict=True)]
        return next((path for path in found if path is not None), None)

    def drawn(self) -> Any:
        """A generator of random numbers that has moved on."""
        moved = [g for g, old in self.positions if old is not None and old != _position(g)]
        return moved[0] if moved else None
