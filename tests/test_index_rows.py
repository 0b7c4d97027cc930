"""Rows of a table: reading many at once, and adding gradients where rows repeat."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


@pytest.mark.parametrize("rows", [1, 3, 50, 5000])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_gradient_of_repeated_rows_is_their_sum(rows, count):
    """5000 rows: nearly all different; 1 or 3: more occurrences of a row than rounds."""
    rng = np.random.default_rng(rows + count)
    table = gg.from_numpy(rng.standard_normal((rows, 40))).requires_grad_()
    index = rng.integers(-rows, rows, count)
    g = rng.standard_normal((count, 40))
    picked = table[gg.from_numpy(index)]
    np.testing.assert_array_equal(picked.detach().numpy(), table.detach().numpy()[index])
    picked.backward(gg.from_numpy(g))
    expected = np.zeros((rows, 40))
    np.add.at(expected, index, g)
    np.testing.assert_allclose(table.grad.numpy(), expected, atol=1e-12)


def test_large_reads_check_their_indices():
    table = gg.randn(100, 300)
    with pytest.raises(IndexError, match="100"):
        table[gg.tensor([100] * 200)]
    rows = gg.tensor([-1, 5] * 100)
    assert gg.equal(table[rows][0], table[99])
