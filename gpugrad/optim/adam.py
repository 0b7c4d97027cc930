"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import gpugrad as gg

from .optimizer import Optimizer, check_at_least_zero, gradient, implementation


@cache
def adam_update(amsgrad: bool, decay: bool, decoupled: bool, maximize: bool) -> Any:
    """One step on lists of tensors. What only depends on numbers is computed once, in float64."""

    def moments(p, m, v, g, weight_decay, beta1, beta2):
        g = gradient(p, g, weight_decay, decay and not decoupled, maximize)
        return m + (1 - beta1) * (g - m), beta2 * v + (1 - beta2) * g * g

    def moved(p, m, v, lr, weight_decay, beta1, beta2, eps, step):
        # m / c1 / (sqrt(v / c2) + eps) with the corrections c = 1 - beta**step of both means, and
        # with two divisions less
        root = (1 - beta2**step) ** 0.5
        if decay and decoupled:
            p = (1 - lr * weight_decay) * p
        return p - lr * root / (1 - beta1**step) * m / (gg.sqrt(v) + eps * root)

    @gg.foreach
    def update(p, m, v, g, *, lr, weight_decay, beta1, beta2, eps, step):
        m, v = moments(p, m, v, g, weight_decay, beta1, beta2)
        return moved(p, m, v, lr, weight_decay, beta1, beta2, eps, step), m, v

    @gg.foreach
    def amsgrad_update(p, m, v, most, g, *, lr, weight_decay, beta1, beta2, eps, step):
        m, v = moments(p, m, v, g, weight_decay, beta1, beta2)
        most = gg.maximum(most, v)
        return moved(p, m, most, lr, weight_decay, beta1, beta2, eps, step), m, v, most

    return amsgrad_update if amsgrad else update


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with L2 weight decay and optionally AMSGrad (Reddi et al. 2018).

    State per parameter: ``step``, ``exp_avg``, ``exp_avg_sq`` and, with ``amsgrad``,
    ``max_exp_avg_sq``. ``decoupled_weight_decay=True`` is AdamW.
    ``foreach``, ``fused``, ``capturable`` and ``master_weights``: see :class:`Optimizer`.

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
        capturable: bool = False,
        master_weights: bool = False,
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
                "capturable": capturable,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
            master_weights=master_weights,
        )

    def _update(self, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        initial = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
        if group["amsgrad"]:
            initial["max_exp_avg_sq"] = 0.0
        decay, decoupled = group["weight_decay"] != 0, group["decoupled_weight_decay"]
        self._run(
            adam_update(group["amsgrad"], decay, decoupled, group["maximize"]),
            group,
            initial,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Every step first scales the parameters by ``1 - lr * weight_decay``.
    ``foreach``, ``fused``, ``capturable`` and ``master_weights``: see :class:`Optimizer`.

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
        capturable: bool = False,
        master_weights: bool = False,
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
            capturable=capturable,
            master_weights=master_weights,
            decoupled_weight_decay=True,
        )
