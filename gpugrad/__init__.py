"""gpugrad: gradients for NumPy and CuPy programs, with PyTorch's API.

>>> import gpugrad as gg
>>> x = gg.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
tensor([2., 4., 6.])
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import autograd, backends, cuda, dtypes, fft, func, functional, linalg, numpy_protocol
from .autograd import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)  # fmt: skip
from .backend.device import device, set_default_device
from .backend.numpy import get_num_threads
from .backend.numpy import set_num_threads as _set_worker_threads
from .backends.cuda import get_float32_matmul_precision, set_float32_matmul_precision
from .creation import (
    arange,
    as_tensor,
    asarray,
    bernoulli,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    logspace,
    meshgrid,
    multinomial,
    normal,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randn,
    randn_like,
    randperm,
    tensor,
    zeros,
    zeros_like,
)  # fmt: skip
from .custom import kernel
from .dtypes import (
    bool_,
    complex64,
    complex128,
    double,
    dtype,
    finfo,
    float16,
    float32,
    float64,
    get_default_dtype,
    half,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    long,
    promote_types,
    set_default_dtype,
    short,
    uint8,
    uint16,
    uint32,
    uint64,
)  # fmt: skip
from .errors import CheckpointError, DeviceError, OutOfMemoryError, SavedTensorError
from .foreach import foreach
from .functions import (
    abs,
    absolute,
    acos,
    acosh,
    add,
    addcdiv,
    addcmul,
    addmm,
    all,
    allclose,
    amax,
    amin,
    any,
    arccos,
    arcsin,
    arctan,
    arctan2,
    argmax,
    argmin,
    argsort,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    bincount,
    bmm,
    broadcast_tensors,
    broadcast_to,
    cat,
    ceil,
    chunk,
    clamp,
    clip,
    clone,
    concat,
    concatenate,
    cos,
    cosh,
    count_nonzero,
    cumsum,
    detach,
    diag,
    diagonal,
    div,
    divide,
    dot,
    einsum,
    eq,
    equal,
    erf,
    exp,
    exp2,
    expm1,
    fix,
    flatten,
    flip,
    floor,
    floor_divide,
    fmod,
    gather,
    ge,
    greater,
    greater_equal,
    gt,
    hypot,
    index_add,
    index_select,
    isclose,
    isfinite,
    isinf,
    isnan,
    le,
    lerp,
    less,
    less_equal,
    log,
    log1p,
    log2,
    log10,
    log_softmax,
    logaddexp,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    logsumexp,
    lt,
    masked_fill,
    masked_select,
    matmul,
    max,
    maximum,
    mean,
    median,
    min,
    minimum,
    mm,
    movedim,
    mul,
    multiply,
    mv,
    nan_to_num,
    narrow,
    ne,
    neg,
    negative,
    nonzero,
    norm,
    not_equal,
    outer,
    permute,
    positive,
    pow,
    prod,
    ravel,
    reciprocal,
    relu,
    remainder,
    repeat_interleave,
    reshape,
    result_type,
    roll,
    round,
    rsqrt,
    scatter,
    scatter_add,
    select,
    sigmoid,
    sign,
    sin,
    sinh,
    softmax,
    sort,
    split,
    sqrt,
    square,
    squeeze,
    stack,
    std,
    sub,
    subtract,
    sum,
    swapaxes,
    swapdims,
    t,
    take_along_dim,
    tan,
    tanh,
    tensordot,
    tile,
    topk,
    trace,
    transpose,
    tril,
    triu,
    true_divide,
    trunc,
    unbind,
    unflatten,
    unique,
    unsqueeze,
    var,
    var_mean,
    where,
)  # fmt: skip
from .lists import foreach_norm
from .mapping import vmap
from .random import (
    Generator,
    default_generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
)  # fmt: skip
from .tensor import Tensor

if _TYPE_CHECKING:
    from . import amp, compiler, io, nn, optim, static, tape, testing, train, utils, vision
    from .amp import autocast
    from .control_flow import cond, scan, while_loop
    from .io import load, load_checkpoint, save, save_checkpoint
    from .static import compile
    from .tape import GradientTape

__version__ = "0.1.0"

bool = bool_

# Built on the public names above, and imported when first used.
_LAZY = (
    "amp",
    "compiler",
    "nn",
    "static",
    "optim",
    "utils",
    "vision",
    "io",
    "train",
    "testing",
    "tape",
)
_LAZY_NAMES = {
    "save": "io",
    "load": "io",
    "save_checkpoint": "io",
    "load_checkpoint": "io",
    "GradientTape": "tape",
    "compile": "static",
    "cond": "control_flow",
    "while_loop": "control_flow",
    "scan": "control_flow",
    "autocast": "amp",
    "clear_autocast_cache": "amp",
    "get_autocast_dtype": "amp",
    "is_autocast_available": "amp",
    "is_autocast_cache_enabled": "amp",
    "is_autocast_enabled": "amp",
    "set_autocast_cache_enabled": "amp",
    "set_autocast_dtype": "amp",
}


def set_num_threads(n: int) -> None:
    """Use ``n`` threads for large elementwise work and in the BLAS behind NumPy.

    The BLAS follows where it is OpenBLAS, as in NumPy's wheels for Linux and Windows; another one
    (Accelerate, MKL) keeps to its own environment variables. Raises RuntimeError below 1.

    >>> import gpugrad as gg
    >>> before = gg.get_num_threads()
    >>> gg.set_num_threads(1)
    >>> gg.get_num_threads()
    1
    >>> gg.set_num_threads(before)
    """
    _set_worker_threads(n)
    from .utils.blas import set_blas_threads

    set_blas_threads(n)


def __getattr__(name: str):
    if name in _LAZY:
        return _importlib.import_module(f".{name}", __name__)
    if name == "bfloat16":  # imports ml_dtypes
        return dtypes.bfloat16
    if name in _LAZY_NAMES:
        return getattr(_importlib.import_module(f".{_LAZY_NAMES[name]}", __name__), name)
    raise AttributeError(f"module 'gpugrad' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY, *_LAZY_NAMES, "bfloat16"])
