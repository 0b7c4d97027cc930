"""Drawing the course of a run."""

from __future__ import annotations

import math
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
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'drawing curves needs matplotlib: pip install "gpugrad[train]"', name="matplotlib"
        ) from error
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06)  # inches; 0.04 touches the border
    figure = Figure(figsize=(10, 4.2), dpi=150, layout=layout)
    FigureCanvasAgg(figure)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    epochs = [result.epoch for result in history]
    _draw(loss_axes, epochs, [r.train_loss for r in history], [r.test_loss for r in history])
    losses = [v for r in history for v in (r.train_loss, r.test_loss) if v is not None]
    logarithmic = _scale_logarithmically(loss_axes, losses)
    _label(loss_axes, "Loss", "cross entropy (log scale)" if logarithmic else "cross entropy")
    _draw(
        accuracy_axes,
        epochs,
        [100 * r.train_accuracy for r in history],
        [None if r.test_accuracy is None else 100 * r.test_accuracy for r in history],
    )
    _label(accuracy_axes, "Accuracy", "correct, %")
    _mark_best(accuracy_axes, history)
    # one legend for both, where no curve can run through it
    figure.legend(
        *accuracy_axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=_TEXT,
    )
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", color=_TEXT)
    figure.savefig(os.fspath(path))


def _draw(axes: Any, epochs: list[int], train: list[float], test: list[float | None]) -> None:
    marker = "o" if len(epochs) <= 30 else ""
    margin = min(0.03 * (epochs[-1] - epochs[0]), 0.9) or 0.5  # no tick at an epoch 0
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
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


def _scale_logarithmically(axes: Any, values: Sequence[float]) -> bool:
    """A logarithmic axis from a tick to a tick: 0.1, 0.2, 0.5, 1, ... written as plain numbers.

    Returns False, and changes nothing, if there is no value that a logarithm could show.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    shown = [v for v in values if math.isfinite(v) and v > 0]
    if not shown:
        return False
    low, high = min(shown), max(shown)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    subs = (1, 2, 5) if len(decades) <= 7 else (1,)
    ticks = [sub * 10.0**decade for decade in decades for sub in subs]
    first = max((t for t in ticks if t <= low), default=ticks[0])
    last = min((t for t in ticks if t >= high and t > first), default=ticks[-1])
    axes.set_yscale("log")
    axes.set_ylim(first / 1.06, last * 1.06)  # room for a marker on the line
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if first <= t <= last]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    return True


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
        last, end = tested[-1]
        text = f"test {100 * last:.2f} % after epoch {end}"
        if accuracy > last:
            text = f"test {100 * last:.2f} %, best {100 * accuracy:.2f} % (epoch {epoch})"
        axes.set_title(text, fontsize=9, color=_TEST, loc="right")
