"""``autocast``: operations choose their dtype by themselves, in a region and in one thread."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from .. import dtypes
from ..autocasting import Autocasting, defaults
from ..backend.cupy import is_available
from ..compiler import module_writes
from ..config import modes
from ..dtypes import is_floating
from ..tensor import Tensor

_DEVICES = ("cpu", "cuda")


def is_autocast_available(device_type: str) -> bool:
    """Whether there is autocasting for a device type: "cpu" and "cuda".

    >>> from gpugrad import amp
    >>> amp.is_autocast_available("cpu")
    True
    """
    _check_name(device_type)
    return device_type in _DEVICES


def _check_name(device_type: Any) -> None:
    if not isinstance(device_type, str):
        raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")


def _check_device(device_type: Any) -> None:
    if not is_autocast_available(device_type):
        raise RuntimeError(
            f"User specified an unsupported autocast device_type {device_type!r}; use one of "
            f"{', '.join(_DEVICES)}"
        )


def get_autocast_dtype(device_type: str) -> Any:
    """The dtype autocasting lowers to: that of the innermost context, or the default: float16 on
    CUDA, bfloat16 on the CPU."""
    _check_device(device_type)
    state = modes.local.autocast
    if state is not None and device_type in state.dtypes:
        return state.dtypes[device_type]
    found = defaults.dtypes.get(device_type)
    if found is None:
        found = dtypes.float16 if device_type == "cuda" else dtypes.bfloat16
    return found


def set_autocast_dtype(device_type: str, dtype: Any) -> None:
    """Set the dtype of contexts that do not say theirs."""
    _check_device(device_type)
    dtype = dtypes.as_dtype(dtype)
    defaults.dtypes[device_type] = dtype
    module_writes.count += 1  # compiled functions look again
    state = modes.local.autocast
    if state is not None and device_type in state.dtypes:
        state.dtypes[device_type] = dtype


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Whether autocasting is on in this thread for a device type."""
    _check_device(device_type)
    state = modes.local.autocast
    return state is not None and device_type in state.dtypes


def is_autocast_cache_enabled() -> bool:
    """Whether casts of parameters are kept within a context."""
    state = modes.local.autocast
    return defaults.cache if state is None else state.cache


def set_autocast_cache_enabled(enabled: bool) -> None:
    """Whether contexts that do not say so keep the casts of parameters."""
    defaults.cache = bool(enabled)
    module_writes.count += 1
    if modes.local.autocast is not None:
        modes.local.autocast.cache = bool(enabled)


def clear_autocast_cache() -> None:
    """Forget the casts of parameters made in this thread."""
    modes.local.autocast_casts.clear()


class autocast:
    """Compute in a lower precision where that is safe; a context manager or a decorator.

    Products of matrices, convolutions and attention are computed in ``dtype``; on CUDA what loses
    too much in 16 bits (exponentials, softmax, norms, losses, sums) is computed in float32, on the
    CPU losses are; all else follows the dtypes of its arguments. The lists are torch's. Gradients
    of parameters have the parameters' dtypes.

    ``device_type`` is "cpu" or "cuda"; ``dtype`` float16 or bfloat16 (default: float16 on CUDA,
    bfloat16 on the CPU). With ``cache_enabled``, the default, a parameter is cast once in a region,
    unless it changes. ``enabled=False`` switches autocasting off in a region. Threads that are
    started inside are not in it.

    >>> import gpugrad as gg
    >>> with gg.autocast("cpu", dtype=gg.float16):
    ...     a = gg.ones(2, 2) @ gg.ones(2, 2)
    ...     with gg.autocast("cpu", enabled=False):
    ...         b = a.float() @ gg.ones(2, 2)
    >>> a.dtype, b.dtype
    (dtype('float16'), dtype('float32'))
    """

    def __init__(
        self,
        device_type: str,
        dtype: Any = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        _check_device(device_type)
        self.device = device_type
        if enabled and device_type == "cuda" and not is_available():
            warnings.warn(
                "User provided device_type of 'cuda', but CUDA is not available. Disabling",
                stacklevel=2,
            )
            enabled = False
        self.fast_dtype = None
        if enabled:
            given = get_autocast_dtype(device_type) if dtype is None else dtypes.as_dtype(dtype)
            if not dtypes.is_half(given):
                warnings.warn(
                    f"In {device_type} autocast, but the target dtype {given} is not supported. "
                    "Disabling autocast. It supports float16 and bfloat16.",
                    stacklevel=2,
                )
                enabled = False
            self.fast_dtype = given
        self._enabled = bool(enabled)
        self._cache = cache_enabled
        self._outer: list[Any] = []

    def __enter__(self) -> autocast:
        local = modes.local
        outer = local.autocast
        self._outer.append(outer)
        if outer is None and not local.autocast_depth:
            local.autocast_casts = {}
        local.autocast_depth += 1
        active = {} if outer is None else dict(outer.dtypes)
        active.pop(self.device, None)
        if self._enabled:
            active[self.device] = self.fast_dtype
        cache = is_autocast_cache_enabled() if self._cache is None else self._cache
        local.autocast = Autocasting(active, cache, local.autocast_casts) if active else None
        modes.enter(special=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        modes.leave(special=True)
        local = modes.local
        local.autocast = self._outer.pop()
        local.autocast_depth -= 1
        if not local.autocast_depth:
            local.autocast_casts = {}

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return decorated


def set_autocast_enabled(device_type: str, enabled: bool) -> None:
    """Refused: a context manager switches autocasting on and off."""
    raise RuntimeError(
        f"set_autocast_enabled({device_type!r}, {enabled}) is not supported: use `with "
        "autocast(device_type, enabled=...)`, which switches it back"
    )


# ------------------------------------------------------------------------------------------------
# autograd.Function


def _cast(value: Any, device_type: str, dtype: Any) -> Any:
    """The tensors of a device type in nested data, in another dtype (float64 stays)."""
    if isinstance(value, Tensor):
        eligible = (
            is_floating(value.dtype)
            and value.device.type == device_type
            and value.dtype != dtypes.float64
        )
        return value.to(dtype=dtype) if eligible else value
    if isinstance(value, Mapping):
        return {
            _cast(k, device_type, dtype): _cast(v, device_type, dtype) for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(v, device_type, dtype) for v in value)
    return value


def custom_fwd(
    fwd: Callable | None = None, *, device_type: str, cast_inputs: Any = None
) -> Callable:
    """Decorate ``forward`` of an ``autograd.Function`` for use under autocast.

    Without ``cast_inputs`` it runs in the autocast state of its caller; with it, its tensors are
    cast to that dtype and it runs without autocast, if autocast is on. ``custom_bwd`` gives the
    state to ``backward``.
    """
    _check_name(device_type)
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def decorate_fwd(*args: Any, **kwargs: Any) -> Any:
        args[0]._dtype = get_autocast_dtype(device_type)
        on = is_autocast_enabled(device_type)
        if cast_inputs is None or not on:
            args[0]._fwd_used_autocast = on
            return fwd(*args, **kwargs)
        args[0]._fwd_used_autocast = False
        with autocast(device_type, enabled=False):
            return fwd(
                *_cast(args, device_type, cast_inputs), **_cast(kwargs, device_type, cast_inputs)
            )

    return decorate_fwd


def custom_bwd(bwd: Callable | None = None, *, device_type: str) -> Callable:
    """Decorate ``backward`` of an ``autograd.Function`` whose ``forward`` has ``custom_fwd``."""
    _check_name(device_type)
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)

    @functools.wraps(bwd)
    def decorate_bwd(*args: Any, **kwargs: Any) -> Any:
        used, dtype = args[0]._fwd_used_autocast, args[0]._dtype
        with autocast(device_type, enabled=used, dtype=dtype):
            return bwd(*args, **kwargs)

    return decorate_bwd
