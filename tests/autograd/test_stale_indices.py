"""Indices, targets and masks that are overwritten between forward and backward: an error, never a
gradient in the wrong place."""

from __future__ import annotations

import pytest

import gpugrad as gg

F = gg.nn.functional
ROWS, MASK = [0, 1, 2], [True, False, True, True, False]

CASES = {
    "cross_entropy": (ROWS, lambda w, i: F.cross_entropy(w[:3], i)),
    "cross_entropy of each": (ROWS, lambda w, i: F.cross_entropy(w[:3], i, reduction="none")),
    "nll_loss": (ROWS, lambda w, i: F.nll_loss(w[:3], i)),
    "embedding": (ROWS, lambda w, i: F.embedding(i, w)),
    "index": (ROWS, lambda w, i: w[i]),
    "index after a slice": (ROWS, lambda w, i: w[:, i]),
    "mask": (MASK, lambda w, i: w[i]),
    "gather": ([ROWS], lambda w, i: gg.gather(w, 1, i)),
    "index_select": (ROWS, lambda w, i: gg.index_select(w, 0, i)),
    "index_add": (ROWS, lambda w, i: gg.index_add(gg.zeros(5, 4), 0, i, w[:3])),
    "scatter_add": ([ROWS], lambda w, i: gg.scatter_add(gg.zeros(5, 4), 1, i, w)),
    "where": ([[True]], lambda w, i: gg.where(i, w, 2 * w)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_index_written_before_backward_is_noticed(name):
    values, function = CASES[name]
    leaf, index = gg.ones(5, 4, requires_grad=True), gg.tensor(values)
    function(leaf * 1.5, index).sum().backward()  # untouched: fine
    result = function(leaf * 1.5, index).sum()
    index.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


def test_weighted_targets_are_copied():
    """With class weights the loss works on targets of its own."""
    logits, target = gg.zeros(2, 3, requires_grad=True), gg.tensor([0, 2])
    loss = F.nll_loss(logits * 1.0, target, gg.ones(3))
    target.zero_()
    loss.backward()
    assert logits.grad.tolist() == [[-0.5, 0, 0], [0, 0, -0.5]]
