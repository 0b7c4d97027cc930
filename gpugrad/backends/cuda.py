"""How products of matrices on CUDA may round: ``gpugrad.backends.cuda.matmul``."""

from __future__ import annotations

from ..backend.cublas import BF16_REDUCTIONS, FP16_REDUCTIONS, TF32
from ..config import settings


def _mode(bit: int, doc: str):
    def read(self) -> bool:
        return bool(settings.matmul_modes & bit)

    def write(self, allowed: bool) -> None:
        if not isinstance(allowed, bool):
            raise TypeError(f"expected True or False, got {allowed!r}")
        settings.matmul_modes = settings.matmul_modes & ~bit | (bit if allowed else 0)

    return property(read, write, doc=doc)


class _Matmul:
    """Switches of products of matrices on CUDA. All are off: nothing rounds more than its dtype.

    >>> import gpugrad as gg
    >>> gg.backends.cuda.matmul.allow_tf32
    False
    """

    __slots__ = ()

    allow_tf32 = _mode(
        TF32,
        """Whether float32 factors may be rounded to TensorFloat-32 (10 bits of mantissa, for tensor
        cores of compute capability 8.0 and later). The same switch as
        ``set_float32_matmul_precision``.""",
    )
    allow_fp16_reduced_precision_reduction = _mode(
        FP16_REDUCTIONS,
        """Whether partial sums of float16 products may be rounded to float16 before they are added.
        Off, unlike torch's.""",
    )
    allow_bf16_reduced_precision_reduction = _mode(
        BF16_REDUCTIONS, "The same for bfloat16. Off, unlike torch's."
    )

    def __setattr__(self, name, value):
        if not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"gpugrad.backends.cuda.matmul has no switch {name!r}")
        object.__setattr__(self, name, value)


matmul = _Matmul()
_precision = "high"  # the name of TF32 that was set last: "high" and "medium" mean the same here


def set_float32_matmul_precision(precision: str) -> None:
    """Let products of float32 matrices on CUDA round their factors.

    "highest" computes in float32 and is the default; "high" and "medium" allow TensorFloat-32.
    Raises RuntimeError for another name.
    """
    global _precision
    if precision not in ("highest", "high", "medium"):
        raise RuntimeError(
            f"set_float32_matmul_precision expects 'highest', 'high' or 'medium', got {precision!r}"
        )
    matmul.allow_tf32 = precision != "highest"
    _precision = "medium" if precision == "medium" else "high"


def get_float32_matmul_precision() -> str:
    """The precision of products of float32 matrices on CUDA: "highest", "high" or "medium".

    >>> import gpugrad as gg
    >>> gg.get_float32_matmul_precision()
    'highest'
    """
    return _precision if matmul.allow_tf32 else "highest"


def is_built() -> bool:
    """True: gpugrad itself always has its CUDA side; ``gpugrad.cuda.is_available()`` says whether
    it can be used."""
    return True
