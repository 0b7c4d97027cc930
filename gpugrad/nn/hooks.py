"""Hooks of modules: where they are kept, and the boundaries that let them see gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gpugrad as gg

if TYPE_CHECKING:
    from .module import Module


class RemovableHandle:
    """Undoes one registration: call ``remove()``, or use it as a context manager.

    >>> from gpugrad import nn
    >>> layer = nn.Linear(2, 3)
    >>> with layer.register_forward_hook(lambda module, args, output: print(output.shape)):
    ...     _ = layer(gg.zeros(4, 2))
    (4, 3)
    """

    def __init__(self, registry: dict[int, Any], key: int):
        self._registry, self.id = registry, key

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        self._registry.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


class Hooks:
    """The hooks of one module, each kind in the order of calling: id -> (hook, with_kwargs)."""

    def __init__(self) -> None:
        self.forward_pre: dict[int, tuple[Callable, bool]] = {}
        self.forward: dict[int, tuple[Callable, bool]] = {}
        self.backward_pre: dict[int, tuple[Callable, bool]] = {}
        self.backward: dict[int, tuple[Callable, bool]] = {}
        self.next_id = 0

    def add(
        self, kind: str, hook: Callable, *, prepend: bool, with_kwargs: bool = False
    ) -> RemovableHandle:
        if not callable(hook):
            raise TypeError(f"a hook must be callable, got {type(hook).__name__}")
        registry = getattr(self, kind)
        key, self.next_id = self.next_id, self.next_id + 1
        earlier = dict(registry) if prepend else {}
        if prepend:
            registry.clear()
        registry[key] = (hook, with_kwargs)
        registry.update(earlier)
        return RemovableHandle(registry, key)


def call_with_hooks(module: Module, hooks: Hooks, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``module(*args, **kwargs)`` in torch's order: pre-hooks, forward, forward hooks.

    Backward hooks see gradients through two identity nodes, one around the inputs and one around
    the outputs: gradients of the module alone, however else its inputs and outputs are used.
    """
    for hook, with_kwargs in tuple(hooks.forward_pre.values()):
        args, kwargs = _run_forward_pre(module, hook, with_kwargs, args, kwargs)
    watch = None
    if hooks.backward or hooks.backward_pre:
        watch = _BackwardWatch(module, hooks)
        args = watch.around_inputs(args)
    result = module.forward(*args, **kwargs)
    for hook, with_kwargs in tuple(hooks.forward.values()):
        replaced = hook(module, args, kwargs, result) if with_kwargs else hook(module, args, result)
        if replaced is not None:
            result = replaced
    return result if watch is None else watch.around_outputs(result)


def _run_forward_pre(module, hook, with_kwargs, args, kwargs):
    if with_kwargs:
        replaced = hook(module, args, kwargs)
        if replaced is None:
            return args, kwargs
        if not (isinstance(replaced, tuple) and len(replaced) == 2):
            raise RuntimeError(
                "a forward pre-hook registered with with_kwargs=True must return None or a tuple "
                f"of (new_args, new_kwargs), but got {replaced!r}"
            )
        return replaced
    replaced = hook(module, args)
    if replaced is None:
        return args, kwargs
    return (replaced if isinstance(replaced, tuple) else (replaced,)), kwargs


class _BackwardWatch:
    """The backward hooks of one call of one module, and the output gradients they wait for."""

    def __init__(self, module: Module, hooks: Hooks):
        self.module = module
        self.pre = [hook for hook, _ in hooks.backward_pre.values()]
        self.post = [hook for hook, _ in hooks.backward.values()]
        self.grad_outputs: tuple | None = None
        self.input_positions: list[int] = []  # those arguments that require a gradient
        self.n_inputs = 0

    def around_inputs(self, args: tuple) -> tuple:
        self.n_inputs = len(args)
        self.input_positions, args = _pass_through(args, self._leaving)
        return args

    def around_outputs(self, result: Any) -> Any:
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        n_outputs = len(outputs)

        def arriving(grads: tuple) -> tuple:
            return self._arriving(_spread(grads, positions, n_outputs), positions)

        positions, outputs = _pass_through(tuple(outputs), arriving)
        return type(result)(outputs) if isinstance(result, (tuple, list)) else outputs[0]

    def _arriving(self, grad_outputs: tuple, positions: list[int]) -> tuple:
        """Gradients of the outputs, on their way into the module."""
        for hook in self.pre:
            replaced = hook(self.module, grad_outputs)
            if replaced is not None:
                grad_outputs = _as_many(replaced, grad_outputs, "grad_output")
        self.grad_outputs = grad_outputs
        if not self.input_positions:  # nothing will leave: this is the end of the module's backward
            grad_inputs = (None,) * self.n_inputs
            for hook in self.post:
                replaced = hook(self.module, grad_inputs, grad_outputs)
                if replaced is not None and any(
                    g is not None
                    for g in (replaced if isinstance(replaced, tuple) else (replaced,))
                ):
                    raise RuntimeError(
                        "Backward hook for Modules where no input requires gradient should "
                        "always return None or None for all gradients."
                    )
        return tuple(grad_outputs[i] for i in positions)

    def _leaving(self, grads: tuple) -> tuple:
        """Gradients of the inputs, on their way out of the module."""
        if self.grad_outputs is None:  # the outputs were bypassed, e.g. a hook replaced them
            return grads
        grad_inputs = _spread(grads, self.input_positions, self.n_inputs)
        for hook in self.post:
            replaced = hook(self.module, grad_inputs, self.grad_outputs)
            if replaced is not None:
                grad_inputs = _as_many(replaced, grad_inputs, "grad_input")
        self.grad_outputs = None
        return tuple(grad_inputs[i] for i in self.input_positions)


def _as_many(replaced: Any, current: tuple, what: str) -> tuple:
    replaced = replaced if isinstance(replaced, tuple) else (replaced,)
    if len(replaced) != len(current):
        raise RuntimeError(
            f"Backward hook returned an invalid number of {what}, "
            f"got {len(replaced)}, but expected {len(current)}"
        )
    return replaced


def _spread(values: tuple, positions: list[int], length: int) -> tuple:
    spread: list[Any] = [None] * length
    for position, value in zip(positions, values, strict=True):
        spread[position] = value
    return tuple(spread)


class _Boundary(gg.autograd.Function):
    """Identity on its tensors; their gradients pass through ``on_grads`` together."""

    @staticmethod
    def forward(ctx, on_grads, *tensors):
        ctx.on_grads = on_grads
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        return (None, *ctx.on_grads(grads))


def _pass_through(values: tuple, on_grads: Callable[[tuple], tuple]) -> tuple[list[int], tuple]:
    """Put one boundary around the tensors of ``values`` that require a gradient."""
    if not gg.is_grad_enabled():
        return [], values
    positions = [i for i, v in enumerate(values) if isinstance(v, gg.Tensor) and v.requires_grad]
    if not positions:
        return [], values
    passed = _Boundary.apply(on_grads, *(values[i] for i in positions))
    result = list(values)
    for position, tensor in zip(positions, passed, strict=True):
        result[position] = tensor
    return positions, tuple(result)
