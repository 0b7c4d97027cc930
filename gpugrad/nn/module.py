"""Module: a tree of parameters, buffers and submodules with a forward."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import gpugrad as gg

from .hooks import Hooks, RemovableHandle, call_with_hooks
from .parameter import Buffer, Parameter

_writes = gg.compiler.module_writes

PARAMETER, BUFFER, MODULE = "parameter", "buffer", "module"


class _IncompatibleKeys(namedtuple("IncompatibleKeys", ["missing_keys", "unexpected_keys"])):
    __slots__ = ()

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return super().__repr__()

    __str__ = __repr__


class Module:
    """Base class of layers and models.

    Assigning a ``Parameter``, a ``Buffer`` or another ``Module`` to an attribute registers it. The
    values live in the instance's ``__dict__`` like any attribute (reading ``self.weight`` costs
    15 ns; looking it up in ``__getattr__``, as torch does, costs 700 ns); ``_registered`` holds
    their names and kinds in the order of registration.

    >>> from gpugrad import nn
    >>> class Scale(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.factor = nn.Parameter(gg.tensor([2.0]))
    ...     def forward(self, x):
    ...         return x * self.factor
    >>> [name for name, _ in Scale().named_parameters()]
    ['factor']
    """

    training: bool
    _registered: Any = MappingProxyType({})  # until Module.__init__ has run; then a dict
    _non_persistent: set[str]
    _hooks: Hooks | None = None

    if TYPE_CHECKING:  # parameters, buffers and submodules are attributes a checker cannot see

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self) -> None:
        set_plain = object.__setattr__
        set_plain(self, "_registered", {})
        set_plain(self, "_non_persistent", set())
        set_plain(self, "training", True)

    # -- calling -----------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the result; every subclass that is called defines it."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if self._hooks is None:
                return self.forward(*args, **kwargs)
            return call_with_hooks(self, self._hooks, args, kwargs)
        except Exception as error:
            _note_where(error, self, args)
            raise

    # -- registration ------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        kind: str | None
        if isinstance(value, Parameter):
            kind = PARAMETER
        elif isinstance(value, Module):
            kind = MODULE
        elif isinstance(value, Buffer):
            kind = BUFFER
        else:
            kind = self._registered.get(name)
            if kind is None:
                if value is not self.__dict__.get(name, self):
                    _writes.count += 1
                object.__setattr__(self, name, value)
                return
            if value is not None and not (kind == BUFFER and isinstance(value, gg.Tensor)):
                raise TypeError(
                    f"cannot assign '{_type_name(value)}' as {_KIND_TEXT[kind][0]} '{name}' "
                    f"({_KIND_TEXT[kind][1]} or None expected)"
                )
        if kind == BUFFER and isinstance(value, Buffer):
            _set_persistent(self, name, value.persistent)
        self._register(name, value, kind)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        _writes.count += 1
        if name in self._registered:
            del self._registered[name]
            self._non_persistent.discard(name)

    def _register(self, name: str, value: Any, kind: str) -> None:
        registered = self.__dict__.get("_registered")
        if registered is None:
            raise AttributeError(f"cannot assign {kind}s before Module.__init__() call")
        registered[name] = kind
        self.__dict__[name] = value
        _writes.count += 1

    def _check_new_name(self, name: str, kind: str) -> None:
        if "_registered" not in self.__dict__:
            raise AttributeError(f"cannot assign {kind}s before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string, but got {type(name).__name__}")
        if hasattr(self, name) and self._registered.get(name) != kind:
            raise KeyError(f"attribute '{name}' already exists")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter; None reserves the name (it is then absent from ``state_dict``)."""
        self._check_new_name(name, PARAMETER)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"cannot assign '{_type_name(param)}' object to parameter '{name}' "
                "(nn.Parameter or None required)"
            )
        if param is not None and param.grad_fn is not None:
            raise ValueError(
                f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must be "
                "created explicitly. To express '{name}' as a function of another Tensor, compute "
                "the value in the forward() method."
            )
        self._register(name, param, PARAMETER)

    def register_buffer(self, name: str, tensor: gg.Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is state but no parameter; ``persistent``: part of ``state_dict``."""
        self._check_new_name(name, BUFFER)
        if tensor is not None and not isinstance(tensor, gg.Tensor):
            raise TypeError(
                f"cannot assign '{_type_name(tensor)}' object to buffer '{name}' "
                "(Tensor or None required)"
            )
        self._register(name, tensor, BUFFER)
        _set_persistent(self, name, persistent)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule, reachable as ``self.<name>``."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"{_type_name(module)} is not a Module subclass")
        self._check_new_name(name, MODULE)
        self._register(name, module, MODULE)

    register_module = add_module

    def _entries(self, kind: str) -> list[tuple[str, Any]]:
        values = self.__dict__
        return [(name, values[name]) for name, k in self._registered.items() if k == kind]

    # torch's names for the three registries, as live views: reading and writing both work
    @property
    def _parameters(self) -> MutableMapping[str, Parameter | None]:
        return _Registry(self, PARAMETER)

    @property
    def _buffers(self) -> MutableMapping[str, gg.Tensor | None]:
        return _Registry(self, BUFFER)

    @property
    def _modules(self) -> MutableMapping[str, Module | None]:
        return _Registry(self, MODULE)

    # -- walking -----------------------------------------------------------------------------------

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """All modules of the tree with their paths, this one first; each module once."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._entries(MODULE):
            if module is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from module.named_modules(memo, path, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """All modules of the tree, this one first; each module once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The submodules right below this one with their names; each module once."""
        seen = set()
        for name, module in self._entries(MODULE):
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The submodules right below this one; each module once."""
        return (module for _, module in self.named_children())

    def _named_tensors(
        self, kind: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen = set()
        modules = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else [(prefix, self)]
        )
        for path, module in modules:
            for name, tensor in module._entries(kind):
                if tensor is None or id(tensor) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(tensor))
                yield (f"{path}.{name}" if path else name), tensor

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Parameters with their paths; a parameter used twice comes once."""
        return self._named_tensors(PARAMETER, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Parameters of this module and, with ``recurse``, of all modules below it."""
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, gg.Tensor]]:
        """Buffers with their paths."""
        return self._named_tensors(BUFFER, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[gg.Tensor]:
        """Buffers of this module and, with ``recurse``, of all modules below it."""
        return (b for _, b in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module at a dotted path such as ``"encoder.layers.0"``; "" is this module."""
        module: Module = self
        for name in target.split(".") if target else ():
            if not hasattr(module, name):
                raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
            module = getattr(module, name)
            if not isinstance(module, Module):
                raise AttributeError(f"`{name}` is not an nn.Module")
        return module

    def _get_tensor(self, target: str, kind: str) -> Any:
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if not hasattr(module, name):
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        if module._registered.get(name) != kind:
            raise AttributeError(f"`{name}` is not a {kind}")
        return getattr(module, name)

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at a dotted path such as ``"fc1.weight"``."""
        return self._get_tensor(target, PARAMETER)

    def get_buffer(self, target: str) -> gg.Tensor:
        """The buffer at a dotted path such as ``"norm.running_mean"``."""
        return self._get_tensor(target, BUFFER)

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every submodule, children first, then on this module."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # -- state -------------------------------------------------------------------------------------

    def state_dict(
        self, *, destination: dict | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Parameters and persistent buffers by path, detached unless ``keep_vars``, not copied.

        >>> from gpugrad import nn
        >>> list(nn.Linear(2, 3).state_dict())
        ['weight', 'bias']
        """
        state = OrderedDict() if destination is None else destination
        for name, tensor in (*self._entries(PARAMETER), *self._entries(BUFFER)):
            if tensor is not None and name not in self._non_persistent:
                state[prefix + name] = tensor if keep_vars else tensor.detach()
        for name, module in self._entries(MODULE):
            if module is not None:
                module.state_dict(destination=state, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Copy a ``state_dict`` into the parameters and buffers, in place.

        Values may be tensors or arrays (of NumPy, or of anything with ``__array__``). Everything is
        checked before anything is copied: after an error the module is as it was. ``assign`` binds
        the given tensors instead of copying them. Returns (missing_keys, unexpected_keys).

        Raises:
            TypeError: ``state_dict`` is not a mapping.
            RuntimeError: keys are missing or unexpected (with ``strict``), or shapes differ.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"Expected state_dict to be dict-like, got {type(state_dict)}. "
                "Pass what module.state_dict() returned, or gpugrad.load(path)."
            )
        own = self._state_slots()
        missing = [key for key in own if key not in state_dict]
        unexpected = [key for key in state_dict if key not in own]
        values, errors = _checked_values(own, state_dict)
        if strict and unexpected:
            errors.insert(0, _key_list("Unexpected", unexpected))
        if strict and missing:
            errors.insert(0, _key_list("Missing", missing))
        if errors:
            text = "\n\t".join(errors)
            raise RuntimeError(
                f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{text}"
            )
        with gg.no_grad():
            for key, value in values.items():
                module, name, tensor = own[key]
                if assign:
                    module._assign(name, tensor, value)
                else:
                    tensor.copy_(value)
        return _IncompatibleKeys(missing, unexpected)

    def _state_slots(self) -> dict[str, tuple[Module, str, gg.Tensor]]:
        """Where each key of the ``state_dict`` lives."""
        slots = {}
        for path, module in self.named_modules(remove_duplicate=False):
            prefix = path + "." if path else ""
            for name, tensor in (*module._entries(PARAMETER), *module._entries(BUFFER)):
                if tensor is not None and name not in module._non_persistent:
                    slots[prefix + name] = (module, name, tensor)
        return slots

    def _assign(self, name: str, current: gg.Tensor, value: gg.Tensor) -> None:
        if isinstance(current, Parameter) and not isinstance(value, Parameter):
            value = Parameter(value, requires_grad=current.requires_grad)
        self.__dict__[name] = value
        _writes.count += 1

    # -- mode, device and dtype --------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training mode (dropout drops, batch norm uses the batch) here and below."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode here and below: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set ``requires_grad`` of all parameters: False freezes the module."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros in place."""
        for param in self.parameters():
            if set_to_none:
                gg.compiler.forget_gradient(param)
            elif (grad := gg.compiler.gradient(param)) is not None:
                if grad.requires_grad:
                    grad = param.grad = grad.detach()
                grad.zero_()

    def _convert(self, convert: Callable[[gg.Tensor], gg.Tensor]) -> Self:
        """Convert every tensor; each stays the same object, so optimizers keep working."""
        for tensor in (*self.parameters(), *self.buffers()):
            converted = convert(tensor.detach())
            if converted.array is not tensor.array:
                tensor.data = converted
            if tensor.grad is not None:
                tensor.grad = convert(tensor.grad.detach())
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert in place: ``to(device)``, ``to(dtype)``, both, or ``to(tensor)``.

        A dtype must be floating point and converts the floating-point tensors only. Parameters
        keep their identity: an optimizer made before ``to`` goes on working.
        """
        device, dtype, non_blocking = _parse_to(*args, **kwargs)

        def convert(tensor: gg.Tensor) -> gg.Tensor:
            target = dtype if _is_floating(tensor.dtype) else None
            return tensor.to(
                device=tensor.device if device is None else device,
                dtype=tensor.dtype if target is None else target,
                non_blocking=non_blocking,
            )

        return self._convert(convert)

    def cpu(self) -> Self:
        """Move all parameters and buffers to the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Self:
        """Move all parameters and buffers to a GPU (the current one by default)."""
        if device is None:
            device = "cuda"
        return self.to(f"cuda:{device}" if isinstance(device, int) else device)

    def float(self) -> Self:
        """Convert floating-point parameters and buffers to float32."""
        return self.to(gg.float32)

    def double(self) -> Self:
        """Convert floating-point parameters and buffers to float64."""
        return self.to(gg.float64)

    def half(self) -> Self:
        """Convert floating-point parameters and buffers to float16."""
        return self.to(gg.float16)

    def bfloat16(self) -> Self:
        """Convert floating-point parameters and buffers to bfloat16."""
        return self.to(gg.bfloat16)

    # -- hooks -------------------------------------------------------------------------------------

    def _add_hook(self, kind: str, hook: Callable, **options: bool) -> RemovableHandle:
        if self._hooks is None:
            self._hooks = Hooks()
        return self._hooks.add(kind, hook, **options)

    def register_forward_pre_hook(
        self, hook: Callable, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args)`` before every forward; what it returns replaces the arguments.

        With ``with_kwargs``: ``hook(module, args, kwargs)``, returning None or (args, kwargs).
        """
        return self._add_hook("forward_pre", hook, prepend=prepend, with_kwargs=with_kwargs)

    def register_forward_hook(
        self, hook: Callable, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after every forward; what it returns is the output.

        With ``with_kwargs``: ``hook(module, args, kwargs, output)``.
        """
        return self._add_hook("forward", hook, prepend=prepend, with_kwargs=with_kwargs)

    def register_full_backward_pre_hook(
        self, hook: Callable, prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, grad_output)`` when the gradients of the outputs are known.

        ``grad_output`` is a tuple; a returned tuple replaces it.
        """
        return self._add_hook("backward_pre", hook, prepend=prepend)

    def register_full_backward_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` when the input gradients are known.

        Both are tuples, with None for what needs no gradient (all of ``grad_input``, if no
        positional argument requires one). A returned tuple replaces ``grad_input``.
        """
        return self._add_hook("backward", hook, prepend=prepend)

    # -- printing ----------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The text between the parentheses of ``repr``; override it to show settings."""
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        extra = self.extra_repr()
        extra_lines = extra.split("\n") if extra else []
        child_lines = [
            f"({name}): {_indent(repr(module))}" for name, module in self._entries(MODULE)
        ]
        if not child_lines and len(extra_lines) <= 1:
            return f"{self._get_name()}({extra})"
        lines = "\n  ".join(extra_lines + child_lines)
        return f"{self._get_name()}(\n  {lines}\n)"


_KIND_TEXT = {
    PARAMETER: ("parameter", "nn.Parameter"),
    BUFFER: ("buffer", "Tensor"),
    MODULE: ("child module", "nn.Module"),
}


class _Registry(MutableMapping):
    """The parameters, buffers or children of a module by name: a live view of the module."""

    __slots__ = ("_kind", "_module")

    def __init__(self, module: Module, kind: str):
        self._module, self._kind = module, kind

    def __getitem__(self, name: str) -> Any:
        if self._module._registered.get(name) != self._kind:
            raise KeyError(name)
        return self._module.__dict__[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._module._register(name, value, self._kind)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        delattr(self._module, name)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._module._entries(self._kind)])

    def __len__(self) -> int:
        return len(self._module._entries(self._kind))

    def __repr__(self) -> str:
        return repr(dict(self))


def _set_persistent(module: Module, name: str, persistent: bool) -> None:
    if persistent:
        module._non_persistent.discard(name)
    else:
        module._non_persistent.add(name)


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _indent(text: str) -> str:
    return text.replace("\n", "\n  ")


def _key_list(what: str, keys: list[str]) -> str:
    quoted = ", ".join(f'"{key}"' for key in keys)
    return f"{what} key(s) in state_dict: {quoted}. "


def _checked_values(
    slots: Mapping[str, tuple[Module, str, gg.Tensor]], state_dict: Mapping[str, Any]
) -> tuple[dict[str, gg.Tensor], list[str]]:
    """The tensors to copy, and a line for each that cannot be copied."""
    values, errors = {}, []
    for key, (_, _, tensor) in slots.items():
        if key not in state_dict:
            continue
        value = state_dict[key]
        if not isinstance(value, gg.Tensor):
            if not hasattr(value, "__array__"):
                errors.append(
                    f'While copying the parameter named "{key}", expected a tensor or an array '
                    f"from the checkpoint but received {_type_name(value)}"
                )
                continue
            on_gpu = hasattr(value, "__cuda_array_interface__")
            value = gg.as_tensor(value if on_gpu else value.__array__())
        if tuple(value.shape) != tuple(tensor.shape):
            errors.append(
                f"size mismatch for {key}: copying a param with shape {value.shape} from "
                f"checkpoint, the shape in current model is {tensor.shape}."
            )
            continue
        values[key] = value
    return values, errors


def _is_floating(dtype: Any) -> bool:
    return gg.dtypes.is_differentiable(dtype)


def _parse_to(*args: Any, device=None, dtype=None, non_blocking: bool = False) -> tuple:
    for arg in args:
        if isinstance(arg, gg.Tensor):
            device, dtype = arg.device, arg.dtype
        elif isinstance(arg, bool):
            non_blocking = arg
        elif isinstance(arg, int):
            device = f"cuda:{arg}"
        elif isinstance(arg, (str, gg.device)):
            device = arg
        elif arg is not None:
            dtype = arg
    if dtype is not None and not _is_floating(gg.dtypes.as_dtype(dtype)):
        raise TypeError(
            f"nn.Module.to only accepts floating point or complex dtypes, but got desired "
            f"dtype={dtype}. Convert integer tensors one by one."
        )
    return device, dtype, non_blocking


def _note_where(error: Exception, module: Module, args: tuple) -> None:
    """Say in which module of the tree an error was raised, and with which shapes.

    The innermost module writes the note; each module around it that can reach the innermost one
    rewrites the path, so what is printed starts at the module that the program called.
    """
    marks = error.__dict__  # notes of an exception are text: what they are about is kept beside
    where = marks.get("_gpugrad_where")
    if where is None:
        if not isinstance(error, (RuntimeError, ValueError, TypeError, IndexError)):
            return
        shapes = ", ".join(
            str(tuple(a.shape)) if isinstance(a, gg.Tensor) else type(a).__name__ for a in args
        )
        label = repr(module) if next(module.children(), None) is None else module._get_name()
        note = f"raised in {label}, called with {shapes or 'no positional arguments'}"
        marks["_gpugrad_where"] = (module, note)
        error.add_note(note)
        return
    inner, note = where
    path = next((p for p, m in module.named_modules() if m is inner), None)
    if path and note in error.__notes__:
        short = note.partition("  (at ")[0]
        longer = f"{short}  (at {module._get_name()}.{path})"
        error.__notes__[error.__notes__.index(note)] = longer
        marks["_gpugrad_where"] = (inner, longer)
