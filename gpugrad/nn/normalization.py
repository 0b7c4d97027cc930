"""Normalization over features (LayerNorm, RMSNorm, GroupNorm) and over the batch (BatchNorm)."""

from __future__ import annotations

import gpugrad as gg
from gpugrad import functional as F

from . import init
from .module import Module
from .parameter import Parameter


class _Affine(Module):
    """A module with an optional ``weight`` (starts at 1) and ``bias`` (starts at 0)."""

    def _add_affine(self, shape: tuple[int, ...], weight: bool, bias: bool, **factory) -> None:
        for name, wanted in (("weight", weight), ("bias", weight and bias)):
            self.register_parameter(name, Parameter(gg.empty(shape, **factory)) if wanted else None)

    def reset_parameters(self) -> None:
        """Set the weight to 1 and the bias to 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


def _as_shape(normalized_shape: int | tuple[int, ...]) -> tuple[int, ...]:
    return (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)


class LayerNorm(_Affine):
    """Normalize over the last dimensions, of sizes ``normalized_shape`` (biased variance).

    >>> from gpugrad import nn
    >>> nn.LayerNorm(2)(gg.tensor([[0.0, 2.0]])).round(decimals=3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _as_shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._add_affine(
            self.normalized_shape, elementwise_affine, bias, device=device, dtype=dtype
        )
        self.reset_parameters()

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Divide by the root mean square of the last dimensions; ``eps`` None: the dtype's epsilon.

    >>> from gpugrad import nn
    >>> nn.RMSNorm(2)(gg.tensor([[3.0, 3.0]])).round(decimals=3).tolist()
    [[1.0, 1.0]]
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _as_shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        if elementwise_affine:
            self.weight = Parameter(gg.empty(self.normalized_shape, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class GroupNorm(_Affine):
    """Normalize (N, C, ...) over groups of C/num_groups channels and all positions.

    >>> from gpugrad import nn
    >>> nn.GroupNorm(2, 4)(gg.zeros(8, 4, 5, 5)).shape
    (8, 4, 5, 5)
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_channels % num_groups != 0:
            raise ValueError(
                f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self._add_affine((num_channels,), affine, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class _BatchNorm(_Affine):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self._add_affine((num_features,), affine, bias, device=device, dtype=dtype)
        mean = var = count = None
        if track_running_stats:
            mean = gg.zeros(num_features, device=device, dtype=dtype)
            var = gg.ones(num_features, device=device, dtype=dtype)
            count = gg.tensor(0, dtype=gg.int64, device=device)
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self.register_buffer("num_batches_tracked", count)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget the running statistics: mean 0, variance 1, no batches."""
        if self.track_running_stats:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Set weight 1, bias 0, and forget the running statistics."""
        self.reset_running_stats()
        super().reset_parameters()

    def forward(self, input: gg.Tensor) -> gg.Tensor:
        self._check_input_dim(input)
        update = self.training and self.track_running_stats
        factor = self.momentum
        if update and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if factor is None:  # cumulative average: the k-th batch weighs 1/k
                count = self.num_batches_tracked
                number = gg.compiler.is_compiling() and not count.is_cuda
                factor = 1.0 / (count.to(dtype=gg.float64) if number else count.item())
        # In training mode the buffers are passed only to be updated; in evaluation mode they are
        # what the input is normalized with, unless there are none.
        use_buffers = update or not self.training
        use_batch = self.training or (self.running_mean is None and self.running_var is None)
        return F.batch_norm(
            input,
            self.running_mean if use_buffers else None,
            self.running_var if use_buffers else None,
            self.weight,
            self.bias,
            use_batch,
            0.0 if factor is None else factor,
            self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Normalize each channel of (N, C) or (N, C, L) over the batch; running averages in eval mode.

    ``running = (1 - momentum) * running + momentum * batch``, with the unbiased batch variance;
    momentum None averages all batches equally.

    >>> from gpugrad import nn
    >>> nn.BatchNorm1d(3)(gg.zeros(8, 3)).shape
    (8, 3)
    """

    def _check_input_dim(self, input: gg.Tensor) -> None:
        if input.ndim not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {input.ndim}D input)")


class BatchNorm2d(_BatchNorm):
    """Normalize each channel of (N, C, H, W) over the batch and all positions, as ``BatchNorm1d``.

    >>> from gpugrad import nn
    >>> nn.BatchNorm2d(3)(gg.zeros(8, 3, 4, 4)).shape
    (8, 3, 4, 4)
    """

    def _check_input_dim(self, input: gg.Tensor) -> None:
        if input.ndim != 4:
            raise ValueError(f"expected 4D input (got {input.ndim}D input)")
