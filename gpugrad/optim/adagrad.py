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
    def update(p, s, g, *, lr, lr_decay, weight_decay, eps, step):
        g = gradient(p, g, weight_decay, decay, maximize)
        s = s + g * g
        return p - lr / (1 + (step - 1) * lr_decay) * g / (gg.sqrt(s) + eps), s

    return update


class Adagrad(Optimizer):
    """Gradient divided by the root of the sum of its squares so far (Duchi et al. 2011).

    State per parameter, made at once: ``step`` and ``sum``.
    ``foreach``, ``fused`` and ``master_weights``: see :class:`Optimizer`.
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
        master_weights: bool = False,
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
            master_weights=master_weights,
        )
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = gg.tensor(0.0, dtype=gg.float32)
                initial = {"sum": group["initial_accumulator_value"]}
                self._start(p, state, initial, master_weights and gg.dtypes.is_half(p.dtype))

    def _update(self, group: dict[str, Any]) -> None:
        self._run(
            adagrad_update(group["weight_decay"] != 0, group["maximize"]),
            group,
            {"sum": group["initial_accumulator_value"]},
            lr=group["lr"],
            lr_decay=group["lr_decay"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
