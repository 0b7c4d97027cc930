"""Containers: Sequential, ModuleList, ModuleDict, ParameterList."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import gpugrad as gg

from .module import MODULE, Module, _indent
from .parameter import Parameter


class _Numbered(Module):
    """Children in order, found by position; deleting and inserting renumbers them."""

    def _children_list(self) -> list[Module]:
        return [module for _, module in self._entries(MODULE)]

    def _renumber(self, modules: Iterable[Module]) -> None:
        modules = list(modules)
        for name, _ in self._entries(MODULE):
            delattr(self, name)
        for i, module in enumerate(modules):
            self.add_module(str(i), module)

    def _name_at(self, index: int) -> str:
        names = [name for name, _ in self._entries(MODULE)]
        index = operator.index(index)
        if not -len(names) <= index < len(names):
            raise IndexError(f"index {index} is out of range for {len(names)} modules")
        return names[index]

    def __len__(self) -> int:
        return len(self._entries(MODULE))

    def __iter__(self) -> Iterator[Module]:
        return iter(self._children_list())

    def _of_slice(self, index: slice) -> Module:
        """A container of the same class for a slice."""
        raise NotImplementedError

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._of_slice(index)
        return getattr(self, self._name_at(index))

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._name_at(index), module)

    def __delitem__(self, index: int | slice) -> None:
        modules = self._children_list()
        if not isinstance(index, slice):
            self._name_at(index)  # checks the range
        del modules[index]
        self._renumber(modules)

    def append(self, module: Module) -> Self:
        """Add a module at the end."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end."""
        if not isinstance(modules, Iterable):
            raise TypeError(
                f"{type(self).__name__}.extend should be called with an iterable, "
                f"but got {type(modules).__name__}"
            )
        for module in list(modules):
            self.append(module)
        return self

    def pop(self, key: int | slice) -> Any:
        """Remove and return the module at a position, or the container of a slice."""
        removed = self[key]
        del self[key]
        return removed

    def __iadd__(self, other: Iterable[Module]) -> Self:
        return self.extend(other)


class Sequential(_Numbered):
    """Modules called one after the other.

    >>> from gpugrad import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model(gg.zeros(3, 4)).shape, len(model[:2])
    ((3, 2), 2)
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            named = list(args[0].items())
        else:
            named = [(str(i), module) for i, module in enumerate(args)]
        for name, module in named:
            self.add_module(name, module)

    def forward(self, input: Any) -> Any:
        values = self.__dict__
        for name, kind in self._registered.items():
            if kind == MODULE:
                input = values[name](input)
        return input

    def _of_slice(self, index: slice) -> Module:
        return type(self)(OrderedDict(self._entries(MODULE)[index]))

    def insert(self, index: int, module: Module) -> Self:
        """Put a module before position ``index``; the later ones move by one."""
        if not isinstance(module, Module):
            raise AssertionError(f"module should be of type: {Module}")
        modules = self._children_list()
        if not -len(modules) <= index <= len(modules):
            raise IndexError(f"Index out of range: {index}")
        modules.insert(index, module)
        self._renumber(modules)
        return self

    def __add__(self, other: Sequential) -> Sequential:
        _check_sequential(other)
        return Sequential(*self, *other)

    def __iadd__(self, other: Iterable[Module]) -> Self:
        _check_sequential(other)
        return self.extend(other)


def _check_sequential(other: Any) -> None:
    if not isinstance(other, Sequential):
        raise ValueError(
            f"add operator supports only objects of Sequential class, but {type(other)} is given."
        )


class ModuleList(_Numbered):
    """A list of modules whose parameters are found; it has no forward of its own.

    >>> from gpugrad import nn
    >>> layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    >>> len(layers), len(list(layers.parameters()))
    (3, 6)
    """

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def _of_slice(self, index: slice) -> Module:
        return type(self)(self._children_list()[index])

    def insert(self, index: int, module: Module) -> None:
        """Put a module before position ``index``; the later ones move by one."""
        modules = self._children_list()
        modules.insert(index, module)
        self._renumber(modules)

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __repr__(self) -> str:
        runs: list[list[Any]] = []  # [first index, count, repr] of equal neighbours
        for i, text in enumerate(map(repr, self)):
            if runs and runs[-1][2] == text:
                runs[-1][1] += 1
            else:
                runs.append([i, 1, text])
        if not runs:
            return f"{self._get_name()}()"
        lines = []
        for first, count, text in runs:
            where = f"({first}): " if count == 1 else f"({first}-{first + count - 1}): {count} x "
            lines.append("  " + _indent(where + text))
        return "\n".join([f"{self._get_name()}(", *lines, ")"])


class ModuleDict(Module):
    """A dict of modules whose parameters are found; keys keep their order.

    >>> from gpugrad import nn
    >>> heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})
    >>> heads["b"](gg.zeros(1, 4)).shape
    (1, 3)
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Module:
        return dict(self._entries(MODULE))[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> Iterable[Module]:
        """The modules."""
        return dict(self._entries(MODULE)).values()

    def items(self) -> Iterable[tuple[str, Module]]:
        """Pairs of name and module."""
        return dict(self._entries(MODULE)).items()

    def pop(self, key: str) -> Module:
        """Remove and return the module of that name."""
        removed = self[key]
        del self[key]
        return removed

    def clear(self) -> None:
        """Remove all modules."""
        self._modules.clear()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add or replace modules, from a mapping or from pairs."""
        if not isinstance(modules, (Mapping, ModuleDict, Iterable)):
            raise TypeError(
                "ModuleDict.update should be called with an iterable of key/value pairs, "
                f"but got {type(modules).__name__}"
            )
        pairs = modules.items() if isinstance(modules, (Mapping, ModuleDict)) else modules
        for key, module in pairs:
            self[key] = module


class ParameterList(Module):
    """A list of parameters; tensors put into it become parameters.

    >>> from gpugrad import nn
    >>> weights = nn.ParameterList([gg.ones(2), gg.ones(3)])
    >>> sum(w.numel() for w in weights.parameters())
    5
    """

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._size = 0
        if values is not None:
            self.extend(values)

    def _name_at(self, index: int) -> str:
        index = operator.index(index)
        if not -self._size <= index < self._size:
            raise IndexError(f"index {index} is out of range for {self._size} parameters")
        return str(index % self._size)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)([self[i] for i in range(self._size)[index]])
        return getattr(self, self._name_at(index))

    def __setitem__(self, index: int, param: Any) -> None:
        if isinstance(param, gg.Tensor) and not isinstance(param, Parameter):
            param = Parameter(param)
        setattr(self, self._name_at(index), param)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(self._size)])

    def append(self, value: Any) -> Self:
        """Add a value at the end."""
        self._size += 1
        self[self._size - 1] = value
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """Add values at the end."""
        if not isinstance(values, Iterable) or isinstance(values, gg.Tensor):
            raise TypeError(
                "ParameterList.extend should be called with an iterable, "
                f"but got {type(values).__name__}"
            )
        for value in list(values):
            self.append(value)
        return self

    def __iadd__(self, values: Iterable[Any]) -> Self:
        return self.extend(values)

    def extra_repr(self) -> str:
        lines = []
        for i, value in enumerate(self):
            if isinstance(value, gg.Tensor):
                kind = "Parameter" if isinstance(value, Parameter) else "Tensor"
                size = "x".join(map(str, value.shape))
                where = "" if value.device.type == "cpu" else f" ({value.device})"
                text = f"{kind} containing: [{value.dtype} of size {size}{where}]"
            else:
                text = f"Object of type: {type(value).__name__}"
            lines.append(f"  ({i}): {text}")
        return "\n".join(lines)
