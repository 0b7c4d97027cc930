"""Switching the tape off and on: contexts that also work as decorators."""

from __future__ import annotations

import functools

from ..config import modes

_GENERATOR = 0x20  # inspect.CO_GENERATOR


class _GradContext:
    """Sets whether this thread records, for the length of a ``with`` block or of a decorated
    call."""

    __slots__ = ("_outer", "enabled")

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self._outer: list = []

    def __enter__(self):
        local = modes.local
        self._outer.append(local.grad)
        local.grad = self.enabled
        modes.enter()
        return self

    def __exit__(self, *exc):
        modes.leave()
        modes.local.grad = self._outer.pop()

    def __call__(self, function):
        enabled = self.enabled
        if getattr(getattr(function, "__code__", None), "co_flags", 0) & _GENERATOR:
            return _decorated_generator(function, enabled)

        @functools.wraps(function)
        def inside(*args, **kwargs):
            with _GradContext(enabled):
                return function(*args, **kwargs)

        return inside


def _decorated_generator(function, enabled: bool):
    """The generator function with the mode set while it runs, and its caller's while that runs."""

    @functools.wraps(function)
    def inside(*args, **kwargs):
        generator = function(*args, **kwargs)
        resume, value = generator.send, None
        while True:
            try:
                with _GradContext(enabled):
                    result = resume(value)
            except StopIteration as stop:
                return stop.value
            try:
                resume, value = generator.send, (yield result)
            except GeneratorExit:
                with _GradContext(enabled):
                    generator.close()
                raise
            except BaseException as error:
                resume, value = generator.throw, error

    return inside


class no_grad(_GradContext):
    """Do not record operations: results have ``requires_grad=False``.

    >>> import gpugrad as gg
    >>> x = gg.ones(2, requires_grad=True)
    >>> with gg.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """

    __slots__ = ()

    def __new__(cls, function=None):
        # torch lets the class itself decorate: @torch.no_grad without parentheses
        return object.__new__(cls) if function is None else _GradContext(False)(function)

    def __init__(self):
        self.enabled, self._outer = False, []


class enable_grad(_GradContext):
    """Record operations, also inside ``no_grad``."""

    __slots__ = ()

    def __init__(self):
        super().__init__(True)


class inference_mode(_GradContext):
    """``no_grad`` under torch's name for code that never needs gradients; ``mode=False`` records as
    usual."""

    __slots__ = ()

    def __init__(self, mode: bool = True):
        super().__init__(not mode and modes.local.grad)


class set_grad_enabled(_GradContext):
    """Record or not, from now on; as a context, until the end of the block."""

    __slots__ = ("_before",)

    def __init__(self, mode: bool):
        super().__init__(bool(mode))
        self._before = modes.local.grad
        _switch(bool(mode))

    def __enter__(self):
        _switch(self._before)
        return super().__enter__()

    def __call__(self, function):
        _switch(self._before)
        return super().__call__(function)


def _switch(enabled: bool) -> None:
    local = modes.local
    off = getattr(local, "switched_off", False)
    if not enabled and not off:
        modes.enter()
        local.switched_off = True
    elif enabled and off:
        modes.leave()
        local.switched_off = False
    local.grad = enabled


def is_grad_enabled() -> bool:
    """Whether this thread records operations."""
    return modes.local.grad


class set_detect_anomaly:
    """Check every gradient for NaN, and remember the line of every operation for messages (slow;
    for debugging)."""

    def __init__(self, mode: bool = True):
        self._before = modes.local.anomaly
        self._set(mode)

    def _set(self, mode: bool) -> None:
        if mode and not modes.local.anomaly:
            modes.enter(special=True)
        elif not mode and modes.local.anomaly:
            modes.leave(special=True)
        modes.local.anomaly = mode

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._set(self._before)


class detect_anomaly(set_detect_anomaly):
    """``with detect_anomaly():`` is ``set_detect_anomaly(True)`` for a block."""

    def __init__(self):
        super().__init__(True)
