"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import gpugrad as gg

from .optimizer import Optimizer, beside, check_at_least_zero, gradient, implementation


@cache
def sgd_update(decay: bool, maximize: bool) -> Any:
    """``p - lr g``."""

    @gg.foreach
    def update(p, g, *, lr, weight_decay):
        return p - lr * gradient(p, g, weight_decay, decay, maximize)

    return update


@cache
def momentum_update(nesterov: bool, decay: bool, maximize: bool) -> Any:
    """``b = keep b + take g``, then ``p - lr b``, or with Nesterov ``p - lr (g + momentum b)``."""

    @gg.foreach
    def update(p, b, g, *, lr, weight_decay, momentum, keep, take):
        g = gradient(p, g, weight_decay, decay, maximize)
        b = keep * b + take * g
        return p - lr * (g + momentum * b if nesterov else b), b

    return update


class SGD(Optimizer):
    """Gradient descent with momentum (dampened, Nesterov) and L2 weight decay.

    State: ``momentum_buffer``, which starts as the first gradient. Formula and defaults are torch's
    (Sutskever et al. 2013, with the learning rate outside of the momentum).
    ``foreach`` and ``fused``: see :class:`Optimizer`.

    >>> x = gg.tensor([1.0], requires_grad=True)
    >>> optimizer = gg.optim.SGD([x], lr=0.1)
    >>> (x * x).sum().backward()
    >>> optimizer.step()
    >>> x.detach()
    tensor([0.8])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        check_at_least_zero(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                **implementation(foreach=foreach, fused=fused),
            },
        )

    def _update(self, group: dict[str, Any]) -> None:
        options = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        variant = (group["weight_decay"] != 0, group["maximize"])
        momentum = group["momentum"]
        if momentum == 0:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                sgd_update(*variant)(params, [p.grad for p in params], **options)
            return
        first: tuple[list, list, list] = ([], [], [])  # parameters, buffers, gradients
        later: tuple[list, list, list] = ([], [], [])
        for p in group["params"]:
            if p.grad is None:
                continue
            buffer = self.state[p].get("momentum_buffer")
            batch = later
            if buffer is None:
                buffer = self.state[p]["momentum_buffer"] = gg.zeros_like(p.detach())
                batch = first
            elif p.is_cuda or buffer.is_cuda:
                buffer = self.state[p]["momentum_buffer"] = beside(p, buffer)
            for values, value in zip(batch, (p, buffer, p.grad), strict=True):
                values.append(value)
        update = momentum_update(group["nesterov"], *variant)
        if first[0]:  # the buffer becomes the first gradient, not dampened
            update(*first, momentum=momentum, keep=0.0, take=1.0, **options)
        if later[0]:
            take = 1.0 - group["dampening"]
            update(*later, momentum=momentum, keep=momentum, take=take, **options)
