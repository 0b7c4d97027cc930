"""Which dtype operations are computed in while ``amp.autocast`` is active in a thread.

Functions ask ``policy_of(name, tensor)`` when a special mode is on anywhere (``modes.special``),
which costs nothing when none is. A policy casts the tensors among the arguments by recorded
operations, so that gradients come back in the parameters' dtypes, and calls the function with
autocasting switched off: what it is made of is computed as torch's own function would be.

Lists: torch's, ATen/autocast_mode.h and autocast_mode.cpp of 2.13, for the functions there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

from .backend import arrays as backend_arrays
from .config import modes
from .dtypes import float32, float64, is_floating, promote_types
from .ops import shape
from .tensor import Tensor, version_of

_LOWER, _FLOAT32, _PROMOTE, _BANNED = "lower", "float32", "promote", "banned"


def _table(**policies: str) -> dict[str, str]:
    return {name: policy for policy, names in policies.items() for name in names.split()}


TABLES = {
    "cuda": _table(
        lower="matmul linear conv1d conv2d conv_transpose2d addmm mm mv bmm einsum "
        "scaled_dot_product_attention",
        # with a dtype of its own where the user gave one: sum, prod, cumsum and softmaxes
        float32="acos asin cosh exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow "
        "square softplus layer_norm rms_norm group_norm norm cosine_similarity nll_loss "
        "cross_entropy kl_div l1_loss smooth_l1_loss huber_loss mse_loss "
        "binary_cross_entropy_with_logits logsumexp prod softmax log_softmax cumsum sum",
        promote="addcdiv addcmul atan2 dot tensordot index_put scatter_add cat stack",
        banned="binary_cross_entropy",
    ),
    "cpu": _table(
        lower="matmul linear conv1d conv2d conv_transpose2d addmm mm bmm einsum "
        "scaled_dot_product_attention",
        float32="prod trace binary_cross_entropy mse_loss nll_loss cross_entropy kl_div l1_loss "
        "smooth_l1_loss huber_loss binary_cross_entropy_with_logits",
        promote="cat stack",
        same="mv dot",  # not cast, though made of a product of matrices
    ),
}


class Defaults:
    """What ``autocast(device_type)`` uses for a dtype that is not given, and whether it keeps the
    casts of parameters."""

    __slots__ = ("cache", "dtypes")

    def __init__(self) -> None:
        self.dtypes: dict[str, Any] = {}
        self.cache = True


defaults = Defaults()


def key() -> tuple:
    """What autocasting does in this thread, and would do in a region: equal where the same function
    computes the same."""
    state = modes.local.autocast
    here = None if state is None else (_names(state.dtypes), state.cache)
    return here, _names(defaults.dtypes), defaults.cache


def _names(dtypes: dict[str, Any]) -> tuple:
    return tuple(sorted((device, str(dtype)) for device, dtype in dtypes.items()))


class Autocasting:
    """What is active in a thread: the lower dtype of each device type that has autocasting, whether
    casts of parameters are kept, and those casts."""

    __slots__ = ("cache", "casts", "dtypes")

    def __init__(self, dtypes: dict[str, Any], cache: bool, casts: dict):
        self.dtypes, self.cache, self.casts = dtypes, cache, casts

    def device_type(self, values: Iterable) -> str | None:
        """The device type of the first tensor that is to be cast."""
        for v in values:
            if isinstance(v, Tensor):
                kind = _device_type(v)
                if kind in self.dtypes:
                    return kind
            elif isinstance(v, (list, tuple)) and v:
                return self.device_type(v)
        return None


def _device_type(x: Tensor) -> str:
    return "cpu" if isinstance(x.array, backend_arrays._ndarray) else "cuda"


class Policy:
    """How a function is called."""

    __slots__ = ("kind", "on", "state")

    def __init__(self, state: Autocasting, on: str, kind: str):
        self.state, self.on, self.kind = state, on, kind

    def __call__(self, function: Callable, *args, **kwargs):
        """The function of the cast arguments, autocasting switched off inside."""
        args, kwargs = self.arguments(args), dict(kwargs)
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                (kwargs[name],) = self.arguments((value,))
        with autocasting(None):
            return function(*args, **kwargs)

    def arguments(self, args: tuple) -> tuple:
        """The arguments with the eligible tensors among them cast."""
        if self.kind == _BANNED:
            raise RuntimeError(
                "binary_cross_entropy and BCELoss are unsafe to autocast: the logarithm of a "
                "probability that was computed in float16 is inaccurate. Use "
                "binary_cross_entropy_with_logits or BCEWithLogitsLoss on what goes into the "
                "sigmoid, or disable autocast locally."
            )
        if self.kind == "same":
            return args
        target = {_LOWER: self.state.dtypes[self.on], _FLOAT32: float32}.get(self.kind)
        if target is None:
            target = self._widest(args)
        return tuple(self._cast(a, target) for a in args)

    def _eligible(self, x: Tensor) -> bool:
        dtype = x.array.dtype
        return _device_type(x) == self.on and is_floating(dtype) and dtype != float64

    def _widest(self, args: Iterable):
        dtype = self.state.dtypes[self.on]
        for a in args:
            if isinstance(a, (list, tuple)):
                dtype = promote_types(dtype, self._widest(a))
            elif isinstance(a, Tensor) and self._eligible(a):
                dtype = promote_types(dtype, a.array.dtype)
        return dtype

    def _cast(self, a, dtype):
        if isinstance(a, (list, tuple)):
            return type(a)(self._cast(v, dtype) for v in a)
        if not isinstance(a, Tensor) or a.array.dtype == dtype or not self._eligible(a):
            return a
        keep = (
            self.kind == _LOWER
            and self.state.cache
            and a.array.dtype == float32
            and a.requires_grad
            and a.is_leaf
            and a._view is None
        )
        if not keep:
            return shape.cast(a, dtype=dtype)
        recording = not modes.unusual or modes.local.grad
        key = (id(a), str(dtype), recording)
        found = self.state.casts.get(key)
        # of this tensor (the entry keeps it), as it is now
        if found is None or found[1] is not a.array or found[2] != version_of(a)[0]:
            cast = shape.cast(a, dtype=dtype)
            found = self.state.casts[key] = (a, a.array, version_of(a)[0], cast)
        return found[3]


def policy_of(name: str, *values) -> Policy | None:
    """The policy of a function for these arguments; None where nothing is to be done."""
    state = modes.local.autocast
    if state is None:
        return None
    on = state.device_type(values)
    if on is None:
        return None
    kind = TABLES[on].get(name)
    return None if kind is None else Policy(state, on, kind)


@contextmanager
def autocasting(state: Autocasting | None):
    """Put a state in force in this thread, with casts of its own."""
    local = modes.local
    outer, outer_casts = local.autocast, local.autocast_casts
    casts: dict = {}
    if state is not None:
        modes.enter(special=True)
        state = Autocasting(state.dtypes, state.cache, casts)
    local.autocast, local.autocast_casts = state, casts
    try:
        yield
    finally:
        local.autocast, local.autocast_casts = outer, outer_casts
        if state is not None:
            modes.leave(special=True)
