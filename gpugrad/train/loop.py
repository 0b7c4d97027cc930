"""The training loop: ``fit`` and ``evaluate``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import gpugrad as gg

__all__ = ["Callback", "EpochResult", "Progress", "StopTraining", "evaluate", "fit"]


class StopTraining(Exception):
    """Raised by a callback to end :func:`fit` between two batches; the run can continue later."""


@dataclass
class EpochResult:
    """What one epoch gave; training figures are averages while the weights changed."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    lr: float
    seconds: float
    samples_per_second: float


@dataclass
class Progress:
    """Where a run stands; goes into a checkpoint with :meth:`state_dict`.

    Attributes:
        epoch: epochs completed.
        batch: batches done in the current epoch.
        samples: images seen in the current epoch.
        seconds: time spent training in the current epoch, without evaluation.
        history: results of the completed epochs.
    """

    epoch: int = 0
    batch: int = 0
    samples: int = 0
    seconds: float = 0.0
    history: list[EpochResult] = field(default_factory=list)
    # Sums over the epoch stay on the device until somebody reads them: no synchronisation per step.
    _loss_sum: Any = 0.0
    _correct: Any = 0

    @property
    def loss(self) -> float:
        """Mean loss per sample in the current epoch (waits for the device)."""
        return float(_number(self._loss_sum)) / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        """Share of samples classified correctly in the current epoch (waits for the device)."""
        return float(_number(self._correct)) / max(self.samples, 1)

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def training_seconds(self) -> float:
        """Time spent training in all epochs so far, without evaluation."""
        return self.seconds + sum(result.seconds for result in self.history)

    def record(self, loss: gg.Tensor, correct: gg.Tensor, samples: int) -> None:
        """Add one batch: mean loss and number of correct answers, still on the device."""
        self._loss_sum = self._loss_sum + loss.detach() * samples
        self._correct = self._correct + correct
        self.samples += samples
        self.batch += 1

    def finish_epoch(self, lr: float, test: tuple[float, float] | None) -> EpochResult:
        """Move the current epoch's figures to the history and start the next epoch."""
        self.epoch += 1
        test_loss, test_accuracy = test if test is not None else (None, None)
        result = EpochResult(
            epoch=self.epoch,
            train_loss=self.loss,
            train_accuracy=self.accuracy,
            test_loss=test_loss,
            test_accuracy=test_accuracy,
            lr=lr,
            seconds=self.seconds,
            samples_per_second=self.samples_per_second,
        )
        self.history.append(result)
        self.batch = self.samples = 0
        self.seconds, self._loss_sum, self._correct = 0.0, 0.0, 0
        return result

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "samples": self.samples,
            "seconds": self.seconds,
            "loss_sum": _number(self._loss_sum),
            "correct": _number(self._correct),
            "history": [asdict(result) for result in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.batch, self.samples = state["epoch"], state["batch"], state["samples"]
        self.seconds, self._loss_sum, self._correct = (
            state["seconds"],
            state["loss_sum"],
            state["correct"],
        )
        self.history = [EpochResult(**result) for result in state["history"]]


class Callback:
    """Hooks of :func:`fit`; override what is needed. Any may raise :class:`StopTraining`."""

    def on_epoch_start(self, progress: Progress) -> None:
        """Before the first batch of an epoch, or the first one after a resume."""

    def on_batch_end(self, progress: Progress) -> None:
        """After each step of the optimizer."""

    def on_epoch_end(self, progress: Progress, result: EpochResult) -> None:
        """After the evaluation that ends an epoch."""


def fit(
    model: gg.nn.Module,
    loader: Iterable[Any],
    *,
    optimizer: Any,
    epochs: int,
    loss_fn: Callable[[gg.Tensor, gg.Tensor], gg.Tensor] | None = None,
    scheduler: Any = None,
    test_loader: Iterable[Any] | None = None,
    device: Any = "cpu",
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
) -> Progress:
    """Train a classifier until ``epochs`` epochs are complete, and return how it went.

    Args:
        model: gives logits ``(N, classes)``.
        loader: yields ``(inputs, labels)``; one pass is one epoch.
        optimizer: over the parameters of ``model``.
        epochs: total number, including those that ``progress`` has behind it.
        loss_fn: of logits and labels; default mean cross entropy.
        scheduler: its ``step()`` is called after every step of the optimizer.
        test_loader: evaluated after every epoch.
        device: where ``model`` lives and batches go.
        callbacks: see :class:`Callback`.
        progress: of a run to continue, with ``loader``, ``model``, ``optimizer`` and ``scheduler``
            restored as well.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.train import MLP, fit
        >>> from gpugrad.utils.data import DataLoader, TensorDataset
        >>> x = gg.randn(32, 4, generator=gg.Generator().manual_seed(0))
        >>> loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8)
        >>> model = MLP(4, hidden=(8,), num_classes=2)
        >>> run = fit(model, loader, optimizer=gg.optim.Adam(model.parameters(), lr=0.01), epochs=2)
        >>> len(run.history)
        2
    """
    loss_fn = loss_fn or gg.nn.functional.cross_entropy
    progress = progress or Progress()
    try:
        while progress.epoch < epochs:
            _train_epoch(model, loader, optimizer, loss_fn, scheduler, device, callbacks, progress)
            lr = optimizer.param_groups[0]["lr"]
            test = (
                evaluate(model, test_loader, loss_fn, device) if test_loader is not None else None
            )
            result = progress.finish_epoch(lr, test)
            for callback in callbacks:
                callback.on_epoch_end(progress, result)
    except StopTraining:
        pass
    return progress


def _train_epoch(
    model: gg.nn.Module,
    loader: Iterable[Any],
    optimizer: Any,
    loss_fn: Callable[[gg.Tensor, gg.Tensor], gg.Tensor],
    scheduler: Any,
    device: Any,
    callbacks: Sequence[Callback],
    progress: Progress,
) -> None:
    model.train()
    for callback in callbacks:
        callback.on_epoch_start(progress)
    before, started = progress.seconds, time.perf_counter()
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        logits = model(inputs)
        loss = loss_fn(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        progress.record(loss, count_correct(logits, labels), len(labels))
        progress.seconds = before + time.perf_counter() - started
        for callback in callbacks:
            callback.on_batch_end(progress)


def evaluate(
    model: gg.nn.Module,
    loader: Iterable[Any],
    loss_fn: Callable[[gg.Tensor, gg.Tensor], gg.Tensor] | None = None,
    device: Any = "cpu",
) -> tuple[float, float]:
    """Return mean loss and accuracy (0..1) of a classifier over a loader, in evaluation mode.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.train import evaluate
        >>> from gpugrad.utils.data import DataLoader, TensorDataset
        >>> logits = gg.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> data = TensorDataset(logits, gg.tensor([0, 0]))
        >>> loss, accuracy = evaluate(gg.nn.Identity(), DataLoader(data, batch_size=2))
        >>> accuracy
        0.5
    """
    loss_fn = loss_fn or gg.nn.functional.cross_entropy
    progress = Progress()
    was_training = model.training
    model.eval()
    with gg.no_grad():
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            logits = model(inputs)
            progress.record(loss_fn(logits, labels), count_correct(logits, labels), len(labels))
    model.train(was_training)
    return progress.loss, progress.accuracy


def count_correct(logits: gg.Tensor, labels: gg.Tensor) -> gg.Tensor:
    """Number of rows whose largest logit is at the label, as a tensor on their device."""
    return (logits.detach().argmax(1) == labels).sum()


def _number(value: Any) -> float | int:
    return value.item() if isinstance(value, gg.Tensor) else value
