"""``GradScaler``: losses scaled so that float16 gradients do not vanish, without waiting for the
device.

The scale, the count of good steps and the flag of what is infinite live on the device. Unscaling is
one launch that also finds infinities; an update looks at the flag by itself and writes nothing if
it is set (``Optimizer.found_inf``). So the host never asks, and the steps can be captured.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from enum import Enum
from functools import cache
from typing import Any

from .. import compiler, creation, dtypes
from ..backend.cupy import is_available
from ..foreach import foreach
from ..functions import where
from ..lists import unscale
from ..tensor import Tensor


class OptState(Enum):
    """How far an optimizer is in this iteration."""

    READY = 0
    UNSCALED = 1
    STEPPED = 2


@cache
def _update_scale() -> Any:
    """One scale after a step: less after an overflow, more after ``interval`` steps without."""

    @foreach
    def update(scale, tracker, found, *, growth, backoff, interval):
        good = tracker + 1
        grown = scale * growth
        grown = where(grown <= _LARGEST, grown, scale)
        after = where(good < interval, scale, grown)
        tracker = where(found > 0, 0.0, where(good < interval, good, 0.0))
        return where(found > 0, scale * backoff, after), tracker

    return update


_LARGEST = 3.4028234663852886e38  # of float32


class GradScaler:
    """Scales losses, unscales gradients, and skips steps whose gradients are infinite or NaN.

    Arguments, methods and numbers are torch's: after a skipped step the scale is multiplied by
    ``backoff_factor``, after ``growth_interval`` good ones by ``growth_factor``.

    >>> import gpugrad as gg
    >>> w = gg.ones(3, requires_grad=True)
    >>> optimizer = gg.optim.SGD([w], lr=0.1)
    >>> scaler = gg.amp.GradScaler("cpu", init_scale=1024.0)
    >>> scaler.scale((w * w).sum()).backward()
    >>> scaler.step(optimizer)
    >>> scaler.update()
    >>> w.detach()
    tensor([0.8, 0.8, 0.8])

    The host waits for the device in ``get_scale``, ``state_dict``, and in ``step`` of an optimizer
    that overrides ``step`` and therefore cannot skip by itself.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._device = device
        self._enabled = bool(enabled)
        if self._enabled and device == "cuda" and not is_available():
            warnings.warn(
                "GradScaler is enabled, but CUDA is not available.  Disabling.", stacklevel=2
            )
            self._enabled = False
        if self._enabled and growth_factor <= 1.0:
            raise ValueError(f"The growth factor must be > 1.0, got {growth_factor}")
        if self._enabled and not backoff_factor < 1.0:
            raise ValueError(f"The backoff factor must be < 1.0, got {backoff_factor}")
        self._init_scale = float(init_scale)
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        self._growth_interval = growth_interval
        self._init_growth_tracker = 0
        self._scale: Tensor | None = None
        self._growth_tracker: Tensor | None = None
        self._per_optimizer: dict[int, dict[str, Any]] = {}

    def _lazy_init(self, device: Any) -> Tensor:
        """The scale, made where the first loss is."""
        if self._scale is None:
            self._scale = _number(self._init_scale, device)
            self._growth_tracker = _number(self._init_growth_tracker, device)
        return self._scale

    def _of(self, optimizer: Any) -> dict[str, Any]:
        key = id(optimizer)
        if key not in self._per_optimizer:
            self._per_optimizer[key] = {"stage": OptState.READY, "found_inf": {}}
        return self._per_optimizer[key]

    def _check_initialised(self, method: str) -> tuple[Tensor, Tensor]:
        if self._scale is None or self._growth_tracker is None:
            raise AssertionError(
                f"Attempted {method} but _scale is None.  This may indicate your script did not "
                "use scaler.scale(loss or outputs) earlier in the iteration."
            )
        return self._scale, self._growth_tracker

    # -- an iteration ------------------------------------------------------------------------------

    def scale(self, outputs: Any) -> Any:
        """A tensor, or tensors in nested lists and tuples, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs * self._lazy_init(outputs.device).to(outputs.device)
        if isinstance(outputs, Iterable):
            scaled = map(self.scale, outputs)
            return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled
        raise ValueError("outputs must be a Tensor or an iterable of Tensors")

    def unscale_(self, optimizer: Any) -> None:
        """Divide an optimizer's gradients by the scale, once per iteration: before clipping them.

        Raises RuntimeError if it was called already since the last ``update``, ValueError for
        gradients in float16.
        """
        if not self._enabled:
            return
        scale, _ = self._check_initialised("unscale_")
        state = self._of(optimizer)
        if state["stage"] is OptState.UNSCALED:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        if state["stage"] is OptState.STEPPED:
            raise RuntimeError("unscale_() is being called after step().")
        inverse = (1.0 / scale.double()).float()
        found: dict[Any, Tensor] = {}
        for device, grads in _grads_by_device(optimizer).items():
            found[device] = _number(0.0, device)
            unscale(grads, inverse.to(device), found[device])
        state["found_inf"], state["stage"] = found, OptState.UNSCALED

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """``optimizer.step(...)`` on unscaled gradients; nothing changes if one is infinite or NaN.

        Gradients are unscaled first if ``unscale_`` has not done so.
        """
        if not self._enabled:
            return optimizer.step(*args, **kwargs)
        if "closure" in kwargs:
            raise RuntimeError("Closure use is not currently supported if GradScaler is enabled.")
        scale, _ = self._check_initialised("step")
        state = self._of(optimizer)
        if state["stage"] is OptState.STEPPED:
            raise RuntimeError("step() has already been called since the last update().")
        if state["stage"] is OptState.READY:
            self.unscale_(optimizer)
        found = state["found_inf"]
        assert found, "No inf checks were recorded for this optimizer."
        total = _total(found.values(), scale.device if len(found) > 1 else next(iter(found)))
        state["stage"] = OptState.STEPPED
        if getattr(optimizer, "skips_by_itself", False):
            optimizer.found_inf = total
            try:
                return optimizer.step(*args, **kwargs)
            finally:
                optimizer.found_inf = None
        return None if total else optimizer.step(*args, **kwargs)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Adapt the scale to whether steps were skipped, or set it; ends the iteration."""
        if not self._enabled:
            return
        scale, tracker = self._check_initialised("update")
        if new_scale is not None:
            if isinstance(new_scale, Tensor):
                assert new_scale.numel() == 1 and not new_scale.requires_grad, (
                    "new_scale should be a float or a float tensor of one element with "
                    "requires_grad=False."
                )
                scale.copy_(new_scale.reshape(()))
            else:
                scale.fill_(float(new_scale))
        else:
            found = [f for s in self._per_optimizer.values() for f in s["found_inf"].values()]
            assert found, "No inf checks were recorded prior to update."
            total, update = _total(found, scale.device), _update_scale()
            with compiler.asked_before_replay(
                "GradScaler", self, lambda: update.values(self._factors()), lambda: None
            ):
                update([scale], [tracker], [total], **self._factors())
        self._per_optimizer.clear()

    def _factors(self) -> dict[str, float]:
        return {
            "growth": float(self._growth_factor),
            "backoff": float(self._backoff_factor),
            "interval": float(self._growth_interval),
        }

    # -- asking and setting ------------------------------------------------------------------------

    def get_scale(self) -> float:
        """The scale (waits for the device); 1.0 if disabled."""
        if not self._enabled:
            return 1.0
        return self._init_scale if self._scale is None else self._scale.item()

    def get_growth_factor(self) -> float:
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        self._growth_interval = new_interval

    def _get_growth_tracker(self) -> int:
        if not self._enabled:
            return 0
        tracker = self._growth_tracker
        return self._init_growth_tracker if tracker is None else int(tracker.item())

    def is_enabled(self) -> bool:
        """Whether it does anything."""
        return self._enabled

    # -- saving and loading ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """torch's: "scale", "growth_factor", "backoff_factor", "growth_interval",
        "_growth_tracker"; empty if disabled. Call it after ``update``. Waits for the device."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._get_growth_tracker(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of ``state_dict()``; RuntimeError for that of a disabled scaler."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError(
                "The source state dict is empty, possibly because it was saved from a disabled "
                "instance of GradScaler."
            )
        self._init_scale = float(state_dict["scale"])
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._init_growth_tracker = int(state_dict["_growth_tracker"])
        if self._scale is not None and self._growth_tracker is not None:
            self._scale.fill_(self._init_scale)
            self._growth_tracker.fill_(float(self._init_growth_tracker))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._enabled:
            assert not self._per_optimizer, (
                "A GradScaler instance may only be pickled at the beginning of an iteration, or at "
                "the end after scaler.update()."
            )
            state["_init_scale"] = self.get_scale()
            state["_init_growth_tracker"] = self._get_growth_tracker()
            state["_scale"] = state["_growth_tracker"] = None
        return state


def _number(value: float, device: Any) -> Tensor:
    """A float32 number on a device, without a copy from the host."""
    return creation.full((), value, dtype=dtypes.float32, device=device)


def _total(flags: Iterable[Tensor], device: Any) -> Tensor:
    """Not zero if one of the flags is not."""
    flags = [flag.to(device) for flag in flags]
    total = flags[0]
    for flag in flags[1:]:
        total = total + flag
    return total


def _grads_by_device(optimizer: Any) -> dict[Any, list[Tensor]]:
    """An optimizer's gradients by device."""
    found: dict[Any, list[Tensor]] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if compiler.gradient(p) is None:
                continue
            if p.grad.dtype == dtypes.float16:
                raise ValueError("Attempting to unscale FP16 gradients.")
            found.setdefault(p.grad.device, []).append(p.grad)
    return found
