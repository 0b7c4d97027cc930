"""Collation: against torch's default_collate where it is installed, and error messages."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.utils.data import default_collate, default_convert

Point = namedtuple("Point", "x y")

SAMPLES = [
    [1, 2],
    [1.5, 2.5],
    [True, False],
    ["a", "b"],
    [b"a", b"b"],
    [(1, 2.0), (3, 4.0)],
    [[1, 2], [3, 4]],
    [{"x": 1, "y": (1, 2)}, {"x": 3, "y": (4, 5)}],
    [Point(1, 2.0), Point(3, 4.0)],
    [np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)],
    [np.float32(1), np.float32(2)],
    [np.int16(1), np.int16(2)],
]


def plain(batch):
    """A batch as nested Python data with dtypes, the same for torch and gpugrad."""
    if isinstance(batch, dict):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return (type(batch).__name__, *map(plain, batch))
    if isinstance(batch, list | tuple):
        return (type(batch).__name__, *map(plain, batch))
    if hasattr(batch, "dtype"):
        return str(batch.dtype).removeprefix("torch."), tuple(batch.shape), batch.tolist()
    return batch


@pytest.mark.parametrize("samples", SAMPLES, ids=lambda samples: type(samples[0]).__name__)
def test_equals_torch(samples):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    theirs = torch.utils.data.default_collate(samples)
    assert plain(default_collate(samples)) == plain(theirs)


@pytest.mark.parametrize(
    "sample",
    [
        np.arange(3),
        (np.zeros(2), "a"),
        [1, 2.0],
        {"x": np.ones(1)},
        Point(np.ones(1), 2),
        7,
        "text",
    ],
)
def test_convert_equals_torch(sample):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    theirs = torch.utils.data.default_convert(sample)
    assert plain(default_convert(sample)) == plain(theirs)


def test_tensors_are_stacked():
    batch = default_collate([gg.tensor([1.0, 2.0]), gg.tensor([3.0, 4.0])])
    assert isinstance(batch, gg.Tensor)
    assert batch.tolist() == [[1, 2], [3, 4]]


def test_different_shapes_are_named():
    with pytest.raises(RuntimeError, match=r"\[2\] at entry 0 and \[3\] at entry 1"):
        default_collate([gg.zeros(2), gg.zeros(3)])
    with pytest.raises(RuntimeError, match=r"\[2\] at entry 0 and \[3\] at entry 1"):
        default_collate([np.zeros(2), np.zeros(3)])


def test_different_lengths_are_named():
    with pytest.raises(RuntimeError, match=r"equal size, got lengths \[1, 2\]"):
        default_collate([(1,), (1, 2)])


def test_unknown_types_are_named():
    with pytest.raises(TypeError, match="object; pass a collate_fn"):
        default_collate([object()])
    with pytest.raises(TypeError, match="dtype <U1"):
        default_collate([np.array(["a"])])
