"""Losses as modules (formulas: ``gpugrad.functional``); ``reduction``: 'mean', 'sum', 'none'."""

from __future__ import annotations

import gpugrad as gg
from gpugrad import functional as F

from .module import Module


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"{reduction} is not a valid value for reduction: mean, sum or none")
        self.reduction = reduction


class _WeightedLoss(_Loss):
    """A loss with a weight that follows the module to its device."""

    def __init__(self, weight: gg.Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)


class MSELoss(_Loss):
    """Squared difference.

    >>> from gpugrad import nn
    >>> nn.MSELoss()(gg.tensor([1.0, 3.0]), gg.tensor([1.0, 1.0])).item()
    2.0
    """

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class L1Loss(_Loss):
    """Absolute difference."""

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(_Loss):
    """``0.5 * d * d / beta`` where ``|d| < beta``, ``|d| - 0.5 * beta`` elsewhere."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(_Loss):
    """``0.5 * d * d`` where ``|d| <= delta``, ``delta * (|d| - 0.5 * delta)`` elsewhere."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = delta

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class NLLLoss(_WeightedLoss):
    """Negative log likelihood of class indices, from log probabilities (N, C) or (N, C, ...)."""

    def __init__(
        self, weight: gg.Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(weight, reduction)
        self.ignore_index = ignore_index

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class CrossEntropyLoss(_WeightedLoss):
    """Cross entropy of logits (N, C) or (N, C, ...) with class indices or class probabilities.

    >>> from gpugrad import nn
    >>> round(nn.CrossEntropyLoss()(gg.zeros(2, 10), gg.tensor([3, 7])).item(), 4)  # log 10
    2.3026
    """

    def __init__(
        self,
        weight: gg.Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCELoss(_WeightedLoss):
    """Binary cross entropy of probabilities with targets in [0, 1]; logarithms are cut at -100."""

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(_WeightedLoss):
    """Binary cross entropy of logits with targets in [0, 1], computed without overflow."""

    def __init__(
        self,
        weight: gg.Tensor | None = None,
        reduction: str = "mean",
        pos_weight: gg.Tensor | None = None,
    ) -> None:
        super().__init__(weight, reduction)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            weight=self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
        )


class KLDivLoss(_Loss):
    """``target * (log target - input)``, with ``input`` log probabilities.

    'batchmean' divides the sum by the batch size: the divergence of the mathematical definition.
    """

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__("mean" if reduction == "batchmean" else reduction)
        self.reduction = reduction
        self.log_target = log_target

    def forward(self, input: gg.Tensor, target: gg.Tensor) -> gg.Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)
