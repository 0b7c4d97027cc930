"""Initial values, written in place and without a gradient; each function returns its tensor.

Every random one takes ``generator=`` (default: the global generator, see ``gpugrad.manual_seed``).
"""

from __future__ import annotations

import math
import warnings

import gpugrad as gg


def uniform_(
    tensor: gg.Tensor, a: float = 0.0, b: float = 1.0, generator: gg.Generator | None = None
) -> gg.Tensor:
    """Fill with draws from U(a, b).

    >>> from gpugrad import nn
    >>> bool((nn.init.uniform_(gg.empty(9), 2.0, 3.0) >= 2.0).all())
    True
    """
    with gg.no_grad():
        return tensor.uniform_(a, b, generator=generator)


def normal_(
    tensor: gg.Tensor, mean: float = 0.0, std: float = 1.0, generator: gg.Generator | None = None
) -> gg.Tensor:
    """Fill with draws from N(mean, std**2)."""
    with gg.no_grad():
        return tensor.normal_(mean, std, generator=generator)


def trunc_normal_(
    tensor: gg.Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: gg.Generator | None = None,
) -> gg.Tensor:
    """Fill with draws from N(mean, std**2) conditioned on [a, b] (bounds in absolute terms).

    Rejection sampling, hence exact: from the normal while [a, b] holds at least 30 % of it, else
    from U(a, b), accepting x with probability density(x) / largest density in [a, b].
    """
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=2,
        )
    inside = _normal_cdf((b - mean) / std) - _normal_cdf((a - mean) / std)
    mode = min(max(mean, a), b)
    log_peak = -0.5 * ((mode - mean) / std) ** 2

    def draw() -> tuple[gg.Tensor, gg.Tensor]:
        """Candidates and whether each is rejected."""
        x = gg.empty_like(tensor)
        if inside > 0.3:
            x.normal_(mean, std, generator=generator)
            return x, (x < a) | (x > b)
        x.uniform_(a, b, generator=generator)
        log_density = ((x - mean) / std) ** 2 * -0.5 - log_peak
        u = gg.empty_like(tensor).uniform_(generator=generator)
        return x, u >= gg.exp(log_density)

    with gg.no_grad():
        result, rejected = draw()
        while bool(rejected.any()):
            candidates, again = draw()
            result = gg.where(rejected, candidates, result)
            rejected = rejected & again
        # a draw near a bound may round to just outside of it in float16
        return tensor.copy_(result.clamp(a, b))


def _normal_cdf(x: float) -> float:
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0


def constant_(tensor: gg.Tensor, val: float) -> gg.Tensor:
    """Fill with ``val``."""
    with gg.no_grad():
        return tensor.fill_(val)


def ones_(tensor: gg.Tensor) -> gg.Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def zeros_(tensor: gg.Tensor) -> gg.Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def eye_(tensor: gg.Tensor) -> gg.Tensor:
    """Fill a matrix with the identity."""
    if tensor.dim() != 2:
        raise ValueError(f"Only tensors with 2 dimensions are supported, got shape {tensor.shape}")
    with gg.no_grad():
        return tensor.copy_(gg.eye(*tensor.shape, dtype=tensor.dtype, device=tensor.device))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps activations to scale through a nonlinearity; ``param``: leaky slope.

    >>> from gpugrad import nn
    >>> nn.init.calculate_gain("leaky_relu", 1.0)
    1.0
    """
    if nonlinearity in ("linear", "conv1d", "conv2d", "conv3d", "sigmoid"):
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, (int, float)):
            raise ValueError(f"negative_slope {slope} not a valid number")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity == "selu":
        return 3.0 / 4
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


def fan_in_and_fan_out(tensor: gg.Tensor) -> tuple[int, int]:
    """Inputs reaching one output, and outputs reached by one input, for a weight (out, in, ...)."""
    if tensor.dim() < 2:
        raise ValueError(
            "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions: "
            f"got shape {tuple(tensor.shape)}"
        )
    n_out, n_in, *kernel = tensor.shape
    window = math.prod(kernel)
    return n_in * window, n_out * window


_calculate_fan_in_and_fan_out = fan_in_and_fan_out  # torch's name


def xavier_uniform_(
    tensor: gg.Tensor, gain: float = 1.0, generator: gg.Generator | None = None
) -> gg.Tensor:
    """U(-a, a) with ``a = gain * sqrt(6 / (fan_in + fan_out))`` (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fan_in_and_fan_out(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(
    tensor: gg.Tensor, gain: float = 1.0, generator: gg.Generator | None = None
) -> gg.Tensor:
    """N(0, std**2) with ``std = gain * sqrt(2 / (fan_in + fan_out))`` (Glorot and Bengio 2010)."""
    std = gain * math.sqrt(2.0 / sum(fan_in_and_fan_out(tensor)))
    return normal_(tensor, 0.0, std, generator)


def _kaiming_std(tensor: gg.Tensor, a: float, mode: str, nonlinearity: str) -> float:
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    fan = fan_in_and_fan_out(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def _is_empty(tensor: gg.Tensor) -> bool:
    if 0 not in tensor.shape:
        return False
    warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
    return True


def kaiming_uniform_(
    tensor: gg.Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: gg.Generator | None = None,
) -> gg.Tensor:
    """U(-b, b) with ``b = gain * sqrt(3 / fan)``; ``a`` is the leaky slope (He et al. 2015)."""
    if _is_empty(tensor):
        return tensor
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: gg.Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: gg.Generator | None = None,
) -> gg.Tensor:
    """N(0, std**2) with ``std = gain / sqrt(fan)``; ``a`` is the leaky slope (He et al. 2015)."""
    if _is_empty(tensor):
        return tensor
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(
    tensor: gg.Tensor, gain: float = 1, generator: gg.Generator | None = None
) -> gg.Tensor:
    """A random (semi-)orthogonal matrix times ``gain``; (out, in, ...) counts as (out, rest).

    From the QR decomposition of a normal matrix, with the signs of R's diagonal made positive
    (Saxe et al. 2013; Mezzadri 2007 on the signs). Decomposed by LAPACK on the CPU.
    """
    if tensor.dim() < 2:
        raise ValueError("Only tensors with 2 or more dimensions are supported")
    if tensor.numel() == 0:
        return tensor
    from numpy.linalg import qr  # once per layer at the start: not worth an op

    rows = tensor.shape[0]
    columns = tensor.numel() // rows
    with gg.no_grad():
        flat = gg.empty(rows, columns, dtype=tensor.dtype, device=tensor.device)
        flat.normal_(0, 1, generator=generator)
        matrix = flat.double().cpu().numpy()
        q, r = qr(matrix.T if rows < columns else matrix)
        diagonal = r.diagonal()
        q = q * ((diagonal > 0).astype(q.dtype) - (diagonal < 0)) * gain
        q = q.T if rows < columns else q
        return tensor.copy_(gg.as_tensor(q.reshape(tuple(tensor.shape))))
