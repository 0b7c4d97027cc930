"""Showing the progress of a run: a live bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from gpugrad.train.loop import Callback, EpochResult, Progress

__all__ = ["BarDisplay", "PlainDisplay", "make_display"]

# Reading the loss waits for the device and drawing costs about 1 ms: ten times a second is enough
# for the eye.
_REFRESH_SECONDS = 0.1


class PlainDisplay(Callback):
    """One line per epoch, for files, pipes and terminals without rich."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        sys.stdout.flush()

    def on_epoch_end(self, progress: Progress, result: EpochResult) -> None:
        print(_epoch_line(result, self.epochs), flush=True)


class BarDisplay(Callback):
    """A bar over the batches of the current epoch, above it a line per finished epoch."""

    def __init__(self, epochs: int, batches: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as Bars

        self.epochs = epochs
        self.batches = batches
        self._bars = Bars(
            TextColumn("[bold]epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("acc {task.fields[accuracy]:6.2f} %"),
            TextColumn("{task.fields[speed]:,.0f} img/s"),
            TimeElapsedColumn(),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bars.add_task(
            "", total=batches, epoch=1, epochs=epochs, loss=0.0, accuracy=0.0, speed=0.0
        )
        self._drawn = 0.0

    def __enter__(self) -> BarDisplay:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def on_epoch_start(self, progress: Progress) -> None:
        self._draw(progress)

    def on_batch_end(self, progress: Progress) -> None:
        now = time.perf_counter()
        if now - self._drawn >= _REFRESH_SECONDS:
            self._drawn = now
            self._draw(progress)

    def on_epoch_end(self, progress: Progress, result: EpochResult) -> None:
        self._bars.console.print(_epoch_line(result, self.epochs), highlight=False)

    def _draw(self, progress: Progress) -> None:
        figures: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss,
            "accuracy": 100 * progress.accuracy,
            "speed": progress.samples_per_second,
        }
        self._bars.update(self._task, completed=progress.batch, refresh=True, **figures)


def make_display(epochs: int, batches: int) -> BarDisplay | PlainDisplay:
    """A bar where standard output is a terminal and rich is installed, else plain lines."""
    if sys.stdout.isatty():
        try:
            return BarDisplay(epochs, batches)
        except ModuleNotFoundError:
            print('(a progress bar needs rich: pip install "gpugrad[train]")')
    return PlainDisplay(epochs)


def _epoch_line(result: EpochResult, epochs: int) -> str:
    line = (
        f"epoch {result.epoch:{len(str(epochs))}}/{epochs}  train loss {result.train_loss:.4f} acc "
        f"{100 * result.train_accuracy:6.2f} %"
    )
    if result.test_loss is not None and result.test_accuracy is not None:
        line += f"  test loss {result.test_loss:.4f} acc {100 * result.test_accuracy:6.2f} %"
    return f"{line}  {result.samples_per_second:7,.0f} img/s"
