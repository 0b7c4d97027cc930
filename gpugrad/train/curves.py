"""Drawing the course of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from gpugrad.train.loop import EpochResult

__all__ = ["draw_curves"]

_TRAIN, _TEST, _GRID, _TEXT = "#8a94a6", "#1f5fd6", "#e6e8ec", "#2b2f36"


def draw_curves(
    history: Sequence[EpochResult], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draw loss and accuracy over the epochs, for training and test, to an image file.

    Args:
        history: results of at least one epoch.
        path: where to write; the ending decides the format (``.png``, ``.svg``, ``.pdf``).
        title: headline.

    Raises:
        ValueError: an empty history.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not history:
        raise ValueError("draw_curves needs the result of at least one epoch, got an empty history")
    try:
        # The object interface with its own canvas: no global state, no display, no change of the
        # user's backend.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'drawing curves needs matplotlib: pip install "gpugrad[train]"', name="matplotlib"
        ) from error
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    epochs = [result.epoch for result in history]
    _draw(loss_axes, epochs, [r.train_loss for r in history], [r.test_loss for r in history])
    _scale_logarithmically(loss_axes)
    _label(loss_axes, "Loss", "cross entropy (log scale)")
    _draw(
        accuracy_axes,
        epochs,
        [100 * r.train_accuracy for r in history],
        [None if r.test_accuracy is None else 100 * r.test_accuracy for r in history],
    )
    _label(accuracy_axes, "Accuracy", "correct, %")
    _mark_best(accuracy_axes, history)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=_TEXT)
    figure.savefig(os.fspath(path))


def _draw(axes: Any, epochs: list[int], train: list[float], test: list[float | None]) -> None:
    marker = "o" if len(epochs) <= 30 else ""
    axes.plot(
        epochs,
        train,
        color=_TRAIN,
        marker=marker,
        markersize=3.5,
        linewidth=1.6,
        label="train, during the epoch",
    )
    if any(value is not None for value in test):
        values = [float("nan") if value is None else value for value in test]
        axes.plot(
            epochs,
            values,
            color=_TEST,
            marker=marker,
            markersize=3.5,
            linewidth=2,
            label="test, after the epoch",
        )
    axes.legend(frameon=False, fontsize=9, labelcolor=_TEXT)


def _scale_logarithmically(axes: Any) -> None:
    """A logarithmic axis with ticks at 0.1, 0.2, 0.5, 1, ... written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _label(axes: Any, name: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(name, fontsize=11, color=_TEXT, loc="left")
    axes.set_xlabel("epoch", color=_TEXT)
    axes.set_ylabel(unit, color=_TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)


def _mark_best(axes: Any, history: Sequence[EpochResult]) -> None:
    tested = [(r.test_accuracy, r.epoch) for r in history if r.test_accuracy is not None]
    if tested:
        accuracy, epoch = max(tested)
        last = tested[-1][0]
        text = f"test {100 * last:.2f} % at the end, best {100 * accuracy:.2f} % (epoch {epoch})"
        axes.set_title(text, fontsize=9, color=_TEST, loc="right")
