"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import gpugrad as gg

from .optimizer import Optimizer, check_at_least_zero, gradient, implementation


@cache
def sgd_update(decay: bool, maximize: bool) -> Any:
    """``p - lr g``."""

    @gg.foreach
    def update(p, g, *, lr, weight_decay):
        return p - lr * gradient(p, g, weight_decay, decay, maximize)

    return update


@cache
def momentum_update(nesterov: bool, decay: bool, maximize: bool) -> Any:
    """``b = momentum b + take g``, then ``p - lr b``, or with Nesterov ``p - lr (g + momentum b)``.

    The buffer becomes the first gradient as it is: later ones are dampened.
    """

    @gg.foreach
    def update(p, b, g, *, lr, weight_decay, momentum, dampening, step):
        g = gradient(p, g, weight_decay, decay, maximize)
        take = gg.where(step <= 1, 1.0, 1.0 - dampening)
        b = momentum * b + take * g
        return p - lr * (g + momentum * b if nesterov else b), b

    return update


class SGD(Optimizer):
    """Gradient descent with momentum (dampened, Nesterov) and L2 weight decay.

    State: ``momentum_buffer``, which starts as the first gradient. Formula and defaults are torch's
    (Sutskever et al. 2013, with the learning rate outside of the momentum).
    ``foreach``, ``fused`` and ``master_weights``: see :class:`Optimizer`.

    >>> x = gg.tensor([1.0], requires_grad=True)
    >>> optimizer = gg.optim.SGD([x], lr=0.1)
    >>> (x * x).sum().backward()
    >>> optimizer.step()
    >>> x.detach()
    tensor([0.8])
    """

    _only_first_step_differs = True

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
        master_weights: bool = False,
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
            master_weights=master_weights,
        )

    def _update(self, group: dict[str, Any]) -> None:
        options = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        variant = (group["weight_decay"] != 0, group["maximize"])
        momentum = group["momentum"]
        if momentum == 0 and (
            self.master_weights or gg.compiler.is_compiling() or self._answers is not None
        ):
            self._run(sgd_update(*variant), group, {}, **options)
            return
        if momentum == 0:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                grads = [p.grad for p in params]
                sgd_update(*variant)(params, grads, unless=self.found_inf, **options)
            return
        self._run(
            momentum_update(group["nesterov"], *variant),
            group,
            {"momentum_buffer": 0.0},
            momentum=momentum,
            dampening=group["dampening"],
            **options,
        )

    def _count(self, p: gg.Tensor, state: dict[str, Any], group: dict[str, Any]) -> int:
        """1 for the first step with a momentum buffer, 2 for later ones."""
        return 1 if state.get("momentum_buffer") is None else 2

    def _count_on_device(
        self, p: gg.Tensor, state: dict[str, Any], group: dict[str, Any], on_device: bool
    ) -> Any:
        """Only where gradients are dampened and the device decides whether a step is made, it must
        count."""
        if not (group["momentum"] and group["dampening"] and p.is_cuda):
            return self._count(p, state, group)
        if "step" not in state:
            made = float(self._count(p, state, group) - 1)
            state["step"] = gg.full((), made, dtype=gg.float32, device=p.device)
        return super()._count_on_device(p, state, group, on_device)
