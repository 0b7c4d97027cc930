"""torch.fft's discrete Fourier transforms: ``gpugrad.fft``, by NumPy and on CUDA by cuFFT through
CuPy.

Without gradients: a tensor with a history is refused, as everywhere where a gradient would pass
through complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .backend.arrays import array_module
from .backend.numpy import xp as np
from .creation import as_tensor
from .dtypes import settings
from .eager import recording, run_arrays
from .errors import no_complex_gradients
from .tensor import Tensor

_NORMS = ("forward", "backward", "ortho")


def _input(name: str, input: Any, norm: str | None) -> Tensor:
    """An argument as a tensor of a dtype that NumPy and CuPy transform alike."""
    if norm is not None and norm not in _NORMS:
        raise RuntimeError(f"fft.{name}: norm must be one of {', '.join(_NORMS)}, got {norm!r}")
    input = as_tensor(input)
    if input.requires_grad and recording():
        raise no_complex_gradients(f"fft.{name} of a tensor with a history")
    if input.dtype.kind in "iub":
        return input.to(dtype=settings.default_dtype)
    if input.dtype.kind not in "fc" or input.dtype.itemsize < 4:
        raise RuntimeError(
            f"fft.{name}: unsupported dtype {input.dtype}; convert the tensor with .float() first"
        )
    return input


def _transform(array, *, name: str, sizes: Any, axes: Any, norm: str | None):
    return getattr(array_module(array).fft, name)(array, sizes, axes, norm)


def _one(name: str) -> Callable[..., Tensor]:
    def transform(
        input: Any, n: int | None = None, dim: int = -1, norm: str | None = None
    ) -> Tensor:
        input = _input(name, input, norm)
        if n is not None and n < 1:
            raise RuntimeError(f"Invalid number of data points ({n}) specified")
        return run_arrays(_transform, input, name=name, sizes=n, axes=dim, norm=norm)

    transform.__name__ = transform.__qualname__ = name
    transform.__doc__ = (
        f"torch.fft.{name}: over ``n`` points along ``dim``, cut or padded with zeros; ``norm`` is "
        f'"backward" (the default), "ortho" or "forward".'
    )
    return transform


def _several(name: str, last: tuple[int, ...] | None) -> Callable[..., Tensor]:
    def transform(input: Any, s: Any = None, dim: Any = last, norm: str | None = None) -> Tensor:
        input = _input(name, input, norm)
        axes = None if dim is None else tuple(dim) if hasattr(dim, "__iter__") else (dim,)
        if axes is None and s is not None:
            axes = tuple(range(input.ndim - len(s), input.ndim))
        elif axes is None:
            axes = tuple(range(input.ndim))
        sizes = None
        if s is not None:  # -1 keeps a size, as in torch
            sizes = [input.shape[a] if n == -1 else n for n, a in zip(s, axes, strict=True)]
        return run_arrays(_transform, input, name=name, sizes=sizes, axes=axes, norm=norm)

    transform.__name__ = transform.__qualname__ = name
    transform.__doc__ = (
        f"torch.fft.{name}: over the dimensions ``dim`` with sizes ``s``, cut or padded with "
        f"zeros; ``norm`` as for ``fft``."
    )
    return transform


fft, ifft, rfft, irfft, hfft, ihfft = map(_one, ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"))
fftn, ifftn, rfftn, irfftn = (_several(n, None) for n in ("fftn", "ifftn", "rfftn", "irfftn"))
fft2, ifft2, rfft2, irfft2 = (_several(n, (-2, -1)) for n in ("fft2", "ifft2", "rfft2", "irfft2"))


def fftfreq(n: int, d: float = 1.0, *, dtype=None, device=None) -> Tensor:
    """Frequencies of the ``n`` results of ``fft``, in cycles per ``d``.

    >>> import gpugrad as gg
    >>> gg.fft.fftfreq(4)
    tensor([ 0.  ,  0.25, -0.5 , -0.25])
    """
    return as_tensor(np.fft.fftfreq(n, d), dtype=dtype or settings.default_dtype, device=device)


def rfftfreq(n: int, d: float = 1.0, *, dtype=None, device=None) -> Tensor:
    """Frequencies of the results of ``rfft`` of ``n`` points."""
    return as_tensor(np.fft.rfftfreq(n, d), dtype=dtype or settings.default_dtype, device=device)


def fftshift(input: Tensor, dim: Any = None) -> Tensor:
    """The frequency 0 moved to the middle; this one has gradients."""
    dims = range(input.ndim) if dim is None else dim if hasattr(dim, "__iter__") else (dim,)
    return input.roll([input.shape[d] // 2 for d in dims], list(dims))


def ifftshift(input: Tensor, dim: Any = None) -> Tensor:
    """The inverse of ``fftshift``."""
    dims = range(input.ndim) if dim is None else dim if hasattr(dim, "__iter__") else (dim,)
    return input.roll([-(input.shape[d] // 2) for d in dims], list(dims))
