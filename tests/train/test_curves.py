"""Drawing: a real picture of the right size, and clear errors."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from gpugrad.train import EpochResult, draw_curves


def history(epochs=5, tested=True):
    return [
        EpochResult(
            epoch=epoch,
            train_loss=1 / epoch,
            train_accuracy=1 - 0.3 / epoch,
            test_loss=0.8 / epoch if tested else None,
            test_accuracy=1 - 0.2 / epoch if tested else None,
            lr=0.1,
            seconds=1.0,
            samples_per_second=1000.0,
        )
        for epoch in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("options", [{}, {"epochs": 1}, {"epochs": 40}, {"tested": False}])
def test_a_picture_with_both_curves_is_written(tmp_path, options):
    pytest.importorskip("matplotlib", reason="pip install gpugrad[train]")
    from matplotlib.image import imread

    path = tmp_path / "curves.png"
    draw_curves(history(**options), path, title="LeNet")
    picture = imread(path)
    assert picture.shape == (630, 1500, 4)
    blue = (picture[..., 2] > 0.7) & (picture[..., 0] < 0.3)
    for half in (blue[:, :750], blue[:, 750:]):
        assert bool(half.any()) == options.get("tested", True)


@pytest.mark.parametrize("loss", [0.0, float("nan"), float("inf"), 1e-12, 1e12])
def test_losses_a_logarithm_cannot_show_do_not_spoil_the_picture(tmp_path, loss):
    pytest.importorskip("matplotlib", reason="pip install gpugrad[train]")
    results = [replace(r, train_loss=loss if r.epoch == 2 else 1.0) for r in history()]
    draw_curves(results, tmp_path / "some.png")  # a warning would be an error
    draw_curves([replace(r, train_loss=loss, test_loss=loss) for r in results], tmp_path / "a.png")


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="at least one epoch"):
        draw_curves([], tmp_path / "curves.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    for name in (
        "matplotlib",
        "matplotlib.backends",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gpugrad\[train\]"'):
        draw_curves(history(), tmp_path / "curves.png")
