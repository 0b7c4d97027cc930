"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import gpugrad as gg

from .optimizer import Optimizer, check_at_least_zero, gradient, implementation


@cache
def adam_update(amsgrad: bool, decay: bool, decoupled: bool, maximize: bool) -> Any:
    """One step on lists of tensors. What only depends on numbers comes in as a number (float64).

    take1 = 1 - beta1, take2 = 1 - beta2, shrink = 1 - lr * weight_decay. With the corrections
    c = 1 - beta**step of both means, size = lr sqrt(c2) / c1 and eps is the user's times sqrt(c2).
    """

    def moments(p, m, v, g, weight_decay, take1, beta2, take2):
        g = gradient(p, g, weight_decay, decay and not decoupled, maximize)
        return m + take1 * (g - m), beta2 * v + take2 * g * g

    def moved(p, m, v, shrink, size, eps):
        # m / c1 / (sqrt(v / c2) + eps) with two divisions less
        if decay and decoupled:
            p = shrink * p
        return p - size * m / (gg.sqrt(v) + eps)

    @gg.foreach
    def update(p, m, v, g, *, weight_decay, shrink, take1, beta2, take2, eps, size):
        m, v = moments(p, m, v, g, weight_decay, take1, beta2, take2)
        return moved(p, m, v, shrink, size, eps), m, v

    @gg.foreach
    def amsgrad_update(p, m, v, most, g, *, weight_decay, shrink, take1, beta2, take2, eps, size):
        m, v = moments(p, m, v, g, weight_decay, take1, beta2, take2)
        most = gg.maximum(most, v)
        return moved(p, m, most, shrink, size, eps), m, v, most

    return amsgrad_update if amsgrad else update


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with L2 weight decay and optionally AMSGrad (Reddi et al. 2018).

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq`` and, with ``amsgrad``,
    ``max_exp_avg_sq``. ``decoupled_weight_decay=True`` is AdamW.
    ``foreach`` and ``fused``: see :class:`Optimizer`.

    >>> x = gg.tensor([1.0], requires_grad=True)
    >>> optimizer = gg.optim.Adam([x], lr=0.1)
    >>> (x * x).sum().backward()
    >>> optimizer.step()
    >>> x.detach()
    tensor([0.9])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        check_at_least_zero(lr=lr, eps=eps)
        for i, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        check_at_least_zero(weight_decay=weight_decay)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                **implementation(foreach=foreach, fused=fused),
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    def _update(self, group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        weight_decay, amsgrad = group["weight_decay"], group["amsgrad"]
        initial = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
        if amsgrad:
            initial["max_exp_avg_sq"] = 0.0
        update = adam_update(
            amsgrad, weight_decay != 0, group["decoupled_weight_decay"], group["maximize"]
        )
        for step, lists in self._batches(group, initial):
            root = (1 - beta2**step) ** 0.5
            update(
                *lists,
                weight_decay=weight_decay,
                shrink=1 - lr * weight_decay,
                take1=1 - beta1,
                beta2=beta2,
                take2=1 - beta2,
                eps=group["eps"] * root,
                size=lr * root / (1 - beta1**step),
            )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Every step first scales the parameters by ``1 - lr * weight_decay``.
    ``foreach`` and ``fused``: see :class:`Optimizer`.

    >>> x = gg.tensor([1.0], requires_grad=True)
    >>> gg.optim.AdamW([x]).param_groups[0]["weight_decay"]
    0.01
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            decoupled_weight_decay=True,
        )
