"""Displays: plain lines, and the bar on a terminal."""

from __future__ import annotations

import sys

import pytest

from gpugrad.train import EpochResult, Progress
from gpugrad.train.display import BarDisplay, PlainDisplay, make_display

RESULT = EpochResult(2, 0.51234, 0.875, 0.41234, 0.9, 0.1, 1.5, 12345.6)


def test_plain_lines(capsys):
    with PlainDisplay(epochs=20) as display:
        display.on_epoch_end(Progress(), RESULT)
    assert capsys.readouterr().out == (
        "epoch  2/20  train loss 0.5123 acc  87.50 %  test loss 0.4123 acc  90.00 %   12,346 "
        "img/s\n"
    )


def test_bar_shows_loss_accuracy_and_speed(monkeypatch, capsys):
    pytest.importorskip("rich", reason="pip install gpugrad[train]")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    progress = Progress(epoch=1, batch=3, samples=100, seconds=0.5)
    progress._loss_sum, progress._correct = 25.0, 90
    with BarDisplay(epochs=4, batches=10) as display:
        display.on_epoch_start(progress)
        display.on_epoch_end(progress, RESULT)
    shown = capsys.readouterr().out
    for part in ("epoch 2/4", "3/10", "0.2500", "90.00 %", "200 img/s", "test loss 0.4123"):
        assert part in shown


def test_a_bar_only_on_a_terminal_with_rich(monkeypatch, capsys):
    assert isinstance(make_display(1, 1), PlainDisplay)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    pytest.importorskip("rich", reason="pip install gpugrad[train]")
    assert isinstance(make_display(1, 1), BarDisplay)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert isinstance(make_display(1, 1), PlainDisplay)
    assert "gpugrad[train]" in capsys.readouterr().out
