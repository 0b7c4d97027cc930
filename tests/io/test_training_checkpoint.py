"""save_checkpoint and load_checkpoint: parts, generators, exact continuation, missing parts."""

from __future__ import annotations

import random

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import io
from gpugrad.utils.data import DataLoader, TensorDataset

pytest.importorskip("safetensors", reason="pip install gpugrad[train]")

X = gg.from_numpy(np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32))
Y = gg.from_numpy((np.arange(40) % 3).astype(np.int64))


class Training:
    """A small model with dropout, so that all generators matter."""

    def __init__(self, optimizer):
        gg.manual_seed(1)
        self.model = gg.nn.Sequential(
            gg.nn.Linear(5, 8), gg.nn.ReLU(), gg.nn.Dropout(0.3), gg.nn.Linear(8, 3)
        )
        self.optimizer = optimizer(self.model.parameters())
        self.loader = DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True)

    @property
    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "loader": self.loader}

    def batches(self):
        while True:
            yield from self.loader

    def run(self, steps):
        """Losses of the next steps, plus numbers of the generators of Python and NumPy."""
        losses = []
        for _, (x, y) in zip(range(steps), self.batches(), strict=False):
            loss = gg.nn.functional.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item() + random.random() + np.random.random())
            if len(losses) == steps:
                break
        return losses


OPTIMIZERS = {
    "sgd": lambda p: gg.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: gg.optim.Adam(p, lr=0.01),
    "adamw": lambda p: gg.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_continuing_is_exact(tmp_path, name):
    path = tmp_path / "run.safetensors"
    random.seed(0)
    np.random.seed(0)
    whole = Training(OPTIMIZERS[name])
    expected = whole.run(26)

    random.seed(0)
    np.random.seed(0)
    first = Training(OPTIMIZERS[name])
    head = first.run(9)  # in the middle of the second epoch of six batches
    io.save_checkpoint(path, **first.parts, note="half-way")

    second = Training(OPTIMIZERS[name])
    second.run(2)
    content = io.load_checkpoint(path, **second.parts)
    assert content["note"] == "half-way"
    assert head + second.run(17) == expected
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        np.testing.assert_array_equal(ours.detach().numpy(), theirs.detach().numpy())


def test_generators_can_be_left_alone(tmp_path):
    path = tmp_path / "run.safetensors"
    gg.manual_seed(0)
    io.save_checkpoint(path, epoch=1)
    after_saving = gg.rand(2).tolist()
    io.load_checkpoint(path)
    assert gg.rand(2).tolist() == after_saving
    io.load_checkpoint(path, rng=False)
    assert gg.rand(2).tolist() != after_saving


def test_missing_parts_are_named(tmp_path):
    path = tmp_path / "run.safetensors"
    io.save_checkpoint(path, model=gg.nn.Linear(2, 1))
    with pytest.raises(io.CheckpointStructureError, match="no state for loader, only for model"):
        io.load_checkpoint(path, model=gg.nn.Linear(2, 1), loader=DataLoader([1]))


def test_other_content_is_described(tmp_path):
    path = tmp_path / "weights.safetensors"
    io.save({"w": gg.ones(1)}, path)
    with pytest.raises(io.CheckpointStructureError, match="a dict with the keys w"):
        io.load_checkpoint(path)
    io.save([1], path)
    with pytest.raises(io.CheckpointStructureError, match="a list"):
        io.load_checkpoint(path)


def test_names_of_its_own_are_reserved(tmp_path):
    with pytest.raises(ValueError, match="rng"):
        io.save_checkpoint(tmp_path / "x", rng=1)
