"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import gpugrad as gg

from .optimizer import Optimizer, check_at_least_zero, gradient, implementation


@cache
def adagrad_update(decay: bool, maximize: bool) -> Any:
    """``s = s + g g``, then ``p - lr g / (sqrt(s) + eps)``."""

    @gg.foreach
    def update(p, s, g, *, lr, weight_decay, eps):
        g = gradient(p, g, weight_decay, decay, maximize)
        s = s + g * g
        return p - lr * g / (gg.sqrt(s) + eps), s

    return update


class Adagrad(Optimizer):
    """Gradient divided by the root of the sum of its squares so far (Duchi et al. 2011).

    State per parameter, made at once: ``step`` and ``sum``.
    ``foreach`` and ``fused``: see :class:`Optimizer`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        check_at_least_zero(
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "maximize": maximize,
                **implementation(foreach=foreach, fused=fused),
            },
        )
        for group in self.param_groups:
            for p in group["params"]:
                self._start(p, self.state[p], {"sum": group["initial_accumulator_value"]})

    def _update(self, group: dict[str, Any]) -> None:
        lr, weight_decay = group["lr"], group["weight_decay"]
        update = adagrad_update(weight_decay != 0, group["maximize"])
        for step, lists in self._batches(group, {"sum": group["initial_accumulator_value"]}):
            update(
                *lists,
                lr=lr / (1 + (step - 1) * group["lr_decay"]),
                weight_decay=weight_decay,
                eps=group["eps"],
            )
