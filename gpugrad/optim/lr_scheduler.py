"""Learning-rate schedules: ``scheduler.step()`` after ``optimizer.step()``. Numbers are torch's.

A schedule computes the new rate of each group from the current one where it can (so that schedules
can be combined, and rates set by hand are respected), in torch's order of operations.
"""

from __future__ import annotations

import math
import types
import warnings
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import gpugrad as gg

from .optimizer import Optimizer


class LRScheduler:
    """Base class: a subclass computes the rates of all groups at ``last_epoch`` in ``get_lr``.

    ``last_epoch=-1`` starts a schedule: the current rates become ``initial_lr`` of the groups, and
    the rates of epoch 0 are set. Another value resumes one after that epoch.
    """

    _initial = False  # whether get_lr is asked for the first rates, not for those of a next step

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = _checked_optimizer(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", _rate(group))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming a "
                    f"scheduler with last_epoch={last_epoch}: load the optimizer's state first, or "
                    "leave last_epoch=-1 for a fresh run"
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._first_step()

    def _first_step(self) -> None:
        self._step_count = 0
        self._initial = True
        try:
            self.step()
        finally:
            del self._initial

    def get_lr(self) -> list[float]:
        """The rates at ``last_epoch``, one per group; ``get_last_lr()`` is what programs ask."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_lr")

    def get_last_lr(self) -> list[float]:
        """The rates now in use, one per group."""
        return self._last_lr

    def step(self) -> None:
        """Go to the next epoch (or batch, whatever the schedule counts)."""
        self._check_order()
        if not gg.compiler.is_compiling():
            self._advance()
            return
        if any(isinstance(group["lr"], gg.Tensor) for group in self.optimizer.param_groups):
            # the schedule would write it before the program reads it
            gg.compiler.not_replayed(f"{type(self).__name__} of a learning rate in a tensor")
        before: list = []

        def advance() -> None:
            before[:] = [self._snapshot()]
            self._advance()

        def undo() -> None:
            self._restore(before.pop())

        gg.compiler.repeated_before_replay(type(self).__name__, self, advance, undo)

    def _check_order(self) -> None:
        steps_itself = type(self.optimizer).step is Optimizer.step
        if self._step_count == 1 and steps_itself and not self.optimizer._opt_called:
            warnings.warn(
                "Detected call of `lr_scheduler.step()` before `optimizer.step()`. Call "
                "`optimizer.step()` first, else the first value of the schedule is skipped.",
                UserWarning,
                stacklevel=3,
            )

    def _snapshot(self) -> tuple[dict, list[dict]]:
        """What a step changes, to take it back: the counts, and the options of the groups."""
        groups = self.optimizer.param_groups
        return dict(self.__dict__), [{k: v for k, v in g.items() if k != "params"} for g in groups]

    def _restore(self, snapshot: tuple) -> None:
        counts, options = snapshot
        self.__dict__.update(counts)
        for group, saved in zip(self.optimizer.param_groups, options, strict=True):
            group.update(saved)

    def _advance(self) -> None:
        """The step itself."""
        self._step_count += 1
        self.last_epoch += 1
        self._set(self.get_lr())

    def _restart(self) -> None:
        """Set the rates of epoch 0, whatever they are now (``SequentialLR`` enters like this)."""
        self._set(self.base_lrs)
        self.last_epoch = 0
        self._initial = True
        try:
            self._set(self.get_lr())
        finally:
            del self._initial

    def _set(self, rates: Iterable[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            _set_rate(group, lr)
        self._last_lr = self._current()

    def _current(self) -> list[float]:
        return [_rate(group) for group in self.optimizer.param_groups]

    def _scaled(self, factor: float) -> list[float]:
        return [lr * factor for lr in self._current()]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of ``state_dict()``; the optimizer's rates come with its own state."""
        self.__dict__.update(state_dict)


class LambdaLR(LRScheduler):
    """``base_lr * lr_lambda(epoch)``, with one function or one per group.

    Functions are not saved; attributes of callable objects are.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        n_groups = len(_checked_optimizer(optimizer).param_groups)
        if not isinstance(lr_lambda, (list, tuple)):
            lr_lambda = [lr_lambda] * n_groups
        if len(lr_lambda) != n_groups:
            raise ValueError(f"Expected {n_groups} lr_lambdas, but got {len(lr_lambda)}")
        self.lr_lambdas = list(lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [
            base_lr * fn(self.last_epoch)
            for fn, base_lr in zip(self.lr_lambdas, self.base_lrs, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["lr_lambdas"] = [
            None if isinstance(fn, types.FunctionType) else dict(fn.__dict__)
            for fn in self.lr_lambdas
        ]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        for fn, saved in zip(self.lr_lambdas, state.pop("lr_lambdas"), strict=True):
            if saved is not None:
                fn.__dict__.update(saved)
        super().load_state_dict(state)


class StepLR(LRScheduler):
    """Multiply by ``gamma`` every ``step_size`` epochs.

    >>> import gpugrad as gg
    >>> optimizer = gg.optim.SGD([gg.zeros(1, requires_grad=True)], lr=1.0)
    >>> scheduler = gg.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    >>> for _ in range(4):
    ...     optimizer.step()
    ...     scheduler.step()
    >>> scheduler.get_last_lr()
    [0.25]
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0 or self.last_epoch % self.step_size != 0:
            return self._current()
        return self._scaled(self.gamma)


class MultiStepLR(LRScheduler):
    """Multiply by ``gamma`` at each of the ``milestones`` (epochs)."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones = Counter(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        times = self.milestones[self.last_epoch]
        return self._scaled(self.gamma**times) if times else self._current()


class ExponentialLR(LRScheduler):
    """Multiply by ``gamma`` every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return self._current() if self._initial else self._scaled(self.gamma)


class LinearLR(LRScheduler):
    """From ``start_factor`` to ``end_factor`` times the base rate, in ``total_iters`` epochs."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1.0:
            raise ValueError(
                "Starting multiplicative factor expected to be greater than 0 and less or equal "
                f"to 1, got {start_factor}"
            )
        if not 0 <= end_factor <= 1.0:
            raise ValueError(
                f"Ending multiplicative factor expected to be between 0 and 1, got {end_factor}"
            )
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return self._scaled(self.start_factor)
        if self._initial or self.last_epoch > self.total_iters:
            return self._current()
        span = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (self.last_epoch - 1) * span
        return self._scaled(1.0 + span / before)


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from the base rate to ``eta_min`` in ``T_max`` epochs, then back, and so on."""

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self._initial:
            return self._current()
        turn = math.pi / self.T_max
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:
            # the rate was eta_min: the ratio below would divide by zero
            rise = (1 - math.cos(turn)) / 2
            return [
                lr + (base_lr - self.eta_min) * rise
                for lr, base_lr in zip(self._current(), self.base_lrs, strict=True)
            ]
        ratio = (1 + math.cos(turn * self.last_epoch)) / (
            1 + math.cos(turn * (self.last_epoch - 1))
        )
        return [ratio * (lr - self.eta_min) + self.eta_min for lr in self._current()]


class OneCycleLR(LRScheduler):
    """Warm up to ``max_lr``, then down to far below the start, once (Smith and Topin 2018).

    Give ``total_steps``, or ``epochs`` and ``steps_per_epoch``; step it after every batch. With
    ``cycle_momentum`` the momentum (or beta1) moves the other way.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        groups = _checked_optimizer(optimizer).param_groups
        self.total_steps = _total_steps(total_steps, epochs, steps_per_epoch)
        if not isinstance(pct_start, float) or not 0 <= pct_start <= 1:
            raise ValueError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
            )
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        self._phases = _one_cycle_phases(self.total_steps, pct_start, three_phase)
        if last_epoch == -1:
            for group, rate in zip(groups, _per_group("max_lr", max_lr, optimizer), strict=True):
                group["initial_lr"] = rate / div_factor
                group["max_lr"] = rate
                group["min_lr"] = group["initial_lr"] / final_div_factor
        if cycle_momentum:
            defaults = optimizer.defaults
            if "momentum" not in defaults and "betas" not in defaults:
                raise ValueError(
                    "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
                )
            self.use_beta1 = "betas" in defaults
            lows = _per_group("base_momentum", base_momentum, optimizer)
            highs = _per_group("max_momentum", max_momentum, optimizer)
            if last_epoch == -1:
                for group, low, high in zip(groups, lows, highs, strict=True):
                    group["max_momentum"], group["base_momentum"] = high, low
                    self._set_momentum(group, high)
        self.optimizer = optimizer
        super().__init__(optimizer, last_epoch)

    def _set_momentum(self, group: dict[str, Any], value: float) -> None:
        if self.use_beta1:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value

    def _between(self, start: float, end: float, part: float) -> float:
        if self.anneal_strategy == "cos":
            return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)
        return (end - start) * part + start

    def get_lr(self) -> list[float]:
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"Tried to step {self.last_epoch} times. The specified number of total steps is "
                f"{self.total_steps}"
            )
        start = 0.0
        for phase in self._phases:
            end = phase["end_step"]
            if self.last_epoch <= end:
                break
            start = end if phase is not self._phases[-1] else start
        part = (self.last_epoch - start) / (end - start)
        rates = []
        for group in self.optimizer.param_groups:
            rates.append(self._between(group[phase["lr"][0]], group[phase["lr"][1]], part))
            if self.cycle_momentum:
                low, high = (group[name] for name in phase["momentum"])
                self._set_momentum(group, self._between(low, high, part))
        return rates


def _total_steps(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is None and (epochs is None or steps_per_epoch is None):
        raise ValueError(
            "You must define either total_steps OR (epochs AND steps_per_epoch) for OneCycleLR"
        )
    given: dict[str, Any] = {"total_steps": total_steps}
    if total_steps is None:
        given = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    for name, value in given.items():
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"Expected positive integer {name}, but got {value}")
    return math.prod(given.values())


def _one_cycle_phases(total_steps: int, pct_start: float, three_phase: bool) -> list[dict]:
    """Where each phase ends, and between which entries of a group rate and momentum move in it."""
    turn = float(pct_start * total_steps)
    up = {
        "end_step": turn - 1,
        "lr": ("initial_lr", "max_lr"),
        "momentum": ("max_momentum", "base_momentum"),
    }
    if not three_phase:
        down = {
            "end_step": total_steps - 1,
            "lr": ("max_lr", "min_lr"),
            "momentum": ("base_momentum", "max_momentum"),
        }
        return [up, down]
    down = {
        "end_step": 2 * turn - 2,
        "lr": ("max_lr", "initial_lr"),
        "momentum": ("base_momentum", "max_momentum"),
    }
    out = {
        "end_step": total_steps - 1,
        "lr": ("initial_lr", "min_lr"),
        "momentum": ("max_momentum", "max_momentum"),
    }
    return [up, down, out]


class SequentialLR(LRScheduler):
    """Schedules one after the other: ``schedulers[i]`` takes over at epoch ``milestones[i-1]``.

    The usual warm-up is ``SequentialLR(opt, [LinearLR(opt), CosineAnnealingLR(opt, 95)], [5])``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        _check_sequence(optimizer, schedulers, milestones)
        self._schedulers = schedulers
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        self.optimizer = optimizer
        for group in optimizer.param_groups:  # undo the first steps that the schedules made
            _set_rate(group, group["initial_lr"])
        self._undo(schedulers)
        first = schedulers[bisect_right(milestones, 0)]
        first._first_step()
        self._last_lr = first.get_last_lr()

    def _undo(self, schedulers: list[LRScheduler]) -> None:
        for scheduler in schedulers:
            if isinstance(scheduler, SequentialLR):
                self._undo(scheduler._schedulers)
            else:
                scheduler.last_epoch -= 1

    def _check_order(self) -> None:
        """The schedule that steps looks at it."""

    def _snapshot(self) -> tuple:
        return super()._snapshot(), [s._snapshot() for s in self._schedulers]

    def _restore(self, snapshot: tuple) -> None:
        own, others = snapshot
        for scheduler, saved in zip(self._schedulers, others, strict=True):
            scheduler._restore(saved)
        super()._restore(own)

    def _advance(self) -> None:
        self.last_epoch += 1
        i = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[i]
        if i > 0 and self._milestones[i - 1] == self.last_epoch:
            scheduler._restart()
        else:
            scheduler._check_order()
            scheduler._advance()
        self._last_lr = scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["_schedulers"] = [s.state_dict() for s in self._schedulers]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        for scheduler, saved in zip(self._schedulers, state.pop("_schedulers"), strict=True):
            scheduler.load_state_dict(saved)
        super().load_state_dict(state)


def _check_sequence(optimizer: Optimizer, schedulers: list, milestones: list[int]) -> None:
    _checked_optimizer(optimizer)
    if not schedulers:
        raise ValueError("SequentialLR expects at least one scheduler, but got no scheduler.")
    for i, scheduler in enumerate(schedulers):
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "SequentialLR does not support `ReduceLROnPlateau` scheduler, whose step needs a "
                f"metric, but got one at index {i}"
            )
        if getattr(scheduler, "optimizer", None) is not optimizer:
            raise ValueError(
                f"SequentialLR expects all schedulers to belong to the same optimizer, but "
                f"{type(scheduler).__name__} at index {i} has another one"
            )
    if len(milestones) != len(schedulers) - 1:
        raise ValueError(
            "Sequential Schedulers expects number of schedulers provided to be one more than the "
            f"number of milestone points, but got {len(schedulers)} schedulers and "
            f"{len(milestones)} milestones"
        )


class ReduceLROnPlateau(LRScheduler):
    """Multiply by ``factor`` when a metric has not improved for more than ``patience`` epochs.

    Better means less than ``best * (1 - threshold)`` (mode 'min', threshold_mode 'rel'), or less
    than ``best - threshold`` ('abs'); mode 'max' is the mirror image.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        if factor >= 1.0:
            raise ValueError(f"Factor should be < 1.0, got {factor}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode {mode} is unknown!")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold mode {threshold_mode} is unknown!")
        self.optimizer = _checked_optimizer(optimizer)
        self.min_lrs = _per_group("min_lr", min_lr, optimizer)
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.eps = eps
        self.last_epoch = 0
        self.best = math.inf if mode == "min" else -math.inf
        self.cooldown_counter = 0
        self.num_bad_epochs = 0
        self._last_lr = self._current()

    def step(self, metrics: Any) -> None:  # type: ignore[override]  # as in torch
        """Look at the metric of one more epoch (a number or a one-element tensor)."""
        gg.compiler.not_replayed("ReduceLROnPlateau")
        value = float(metrics)
        self.last_epoch += 1
        if self._is_better(value):
            self.best = value
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = self._current()

    @property
    def in_cooldown(self) -> bool:
        """Whether bad epochs are not counted because the rate was just reduced."""
        return self.cooldown_counter > 0

    def _is_better(self, value: float) -> bool:
        sign = 1.0 if self.mode == "min" else -1.0
        if self.threshold_mode == "rel":
            return sign * value < sign * self.best * (1.0 - sign * self.threshold)
        return sign * value < sign * self.best - self.threshold

    def _reduce(self) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.min_lrs):
            raise RuntimeError(
                f"The number of param groups in the optimizer ({len(groups)}) differs from when "
                f"ReduceLROnPlateau was initialized ({len(self.min_lrs)}): set scheduler.min_lrs "
                "to one value per group"
            )
        for group, least in zip(groups, self.min_lrs, strict=True):
            rate = _rate(group)
            reduced = max(rate * self.factor, least)
            if rate - reduced > self.eps:
                _set_rate(group, reduced)


# Values of learning rates that are tensors, and the versions they were set at.
_known: weakref.WeakKeyDictionary[gg.Tensor, tuple[int, float]] = weakref.WeakKeyDictionary()


def _rate(group: dict[str, Any]) -> float:
    """The learning rate of a group as a number. A tensor on a device is read (and waited for) only
    if it was written since a schedule set it."""
    lr = group["lr"]
    if not isinstance(lr, gg.Tensor):
        return lr
    version, value = _known.get(lr, (None, 0.0))
    return value if version == lr.version else lr.item()


def _set_rate(group: dict[str, Any], value: float) -> None:
    """Set the learning rate of a group; a tensor stays the same object, for graphs that read it."""
    lr = group["lr"]
    if isinstance(lr, gg.Tensor):
        lr.fill_(value)
        _known[lr] = (lr.version, value)
    else:
        group["lr"] = value


def _checked_optimizer(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
    return optimizer


def _per_group(name: str, value: float | list[float], optimizer: Optimizer) -> list[float]:
    """One value per parameter group, from one for all or a list."""
    n_groups = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [value] * n_groups
    if len(value) != n_groups:
        raise ValueError(
            f"{name} must have the same length as optimizer.param_groups. {name} has {len(value)} "
            f"values, param_groups has {n_groups}."
        )
    return list(value)
