"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import gpugrad as gg

from .optimizer import Optimizer, check_at_least_zero, gradient, implementation


@cache
def rmsprop_update(centered: bool, momentum: bool, decay: bool, maximize: bool) -> Any:
    """One step on lists of tensors; ``s`` averages squares, ``a`` gradients; ``b``: the buffer,
    ``factor``: the momentum."""

    def move(p, s, b, a, g, lr, weight_decay, alpha, eps, factor):
        g = gradient(p, g, weight_decay, decay, maximize)
        s = alpha * s + (1 - alpha) * g * g
        variance = s
        if centered:
            a = a + (1 - alpha) * (g - a)
            variance = s - a * a
        g = g / (gg.sqrt(variance) + eps)
        if momentum:
            g = b = factor * b + g
        return p - lr * g, s, b, a

    @gg.foreach
    def plain(p, s, g, *, lr, weight_decay, alpha, eps, factor):
        return move(p, s, 0.0, 0.0, g, lr, weight_decay, alpha, eps, factor)[:2]

    @gg.foreach
    def with_buffer(p, s, b, g, *, lr, weight_decay, alpha, eps, factor):
        return move(p, s, b, 0.0, g, lr, weight_decay, alpha, eps, factor)[:3]

    @gg.foreach
    def with_mean(p, s, a, g, *, lr, weight_decay, alpha, eps, factor):
        p, s, _, a = move(p, s, 0.0, a, g, lr, weight_decay, alpha, eps, factor)
        return p, s, a

    @gg.foreach
    def with_both(p, s, b, a, g, *, lr, weight_decay, alpha, eps, factor):
        return move(p, s, b, a, g, lr, weight_decay, alpha, eps, factor)

    if momentum:
        return with_both if centered else with_buffer
    return with_mean if centered else plain


class RMSprop(Optimizer):
    """Gradient divided by the root of its running mean square (Hinton 2012; centered: Graves 2013).

    State per parameter: ``step``, ``square_avg``, and ``momentum_buffer`` and ``grad_avg`` when
    ``momentum`` or ``centered`` ask for them.
    ``foreach``, ``capturable`` and ``master_weights``: see :class:`Optimizer`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        master_weights: bool = False,
    ) -> None:
        check_at_least_zero(
            lr=lr, eps=eps, momentum=momentum, weight_decay=weight_decay, alpha=alpha
        )
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "maximize": maximize,
                **implementation(foreach=foreach),
                "capturable": capturable,
            },
            master_weights=master_weights,
        )

    def _update(self, group: dict[str, Any]) -> None:
        momentum, centered = group["momentum"], group["centered"]
        weight_decay = group["weight_decay"]
        initial = {"square_avg": 0.0}
        if momentum > 0:
            initial["momentum_buffer"] = 0.0
        if centered:
            initial["grad_avg"] = 0.0
        self._run(
            rmsprop_update(centered, momentum > 0, weight_decay != 0, group["maximize"]),
            group,
            initial,
            lr=group["lr"],
            weight_decay=weight_decay,
            alpha=group["alpha"],
            eps=group["eps"],
            factor=momentum,
        )
