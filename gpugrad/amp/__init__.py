"""Mixed precision with torch's names: ``autocast`` and ``GradScaler``.

>>> import gpugrad as gg
>>> x, w = gg.ones(2, 3), gg.ones(3, 4, requires_grad=True)
>>> with gg.autocast("cpu", dtype=gg.float16):
...     y = x @ w
>>> y.dtype
dtype('float16')
>>> y.float().sum().backward()
>>> w.grad.dtype
dtype('float32')
"""

from .autocast_mode import (
    autocast,
    clear_autocast_cache,
    custom_bwd,
    custom_fwd,
    get_autocast_dtype,
    is_autocast_available,
    is_autocast_cache_enabled,
    is_autocast_enabled,
    set_autocast_cache_enabled,
    set_autocast_dtype,
    set_autocast_enabled,
)
from .grad_scaler import GradScaler

__all__ = [
    "GradScaler",
    "autocast",
    "clear_autocast_cache",
    "custom_bwd",
    "custom_fwd",
    "get_autocast_dtype",
    "is_autocast_available",
    "is_autocast_cache_enabled",
    "is_autocast_enabled",
    "set_autocast_cache_enabled",
    "set_autocast_dtype",
    "set_autocast_enabled",
]
