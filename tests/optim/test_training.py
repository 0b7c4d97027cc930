"""Whole training steps against torch: the same weights and data give the same losses."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg


def _lenet(lib):
    nn = lib.nn
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 84),
        nn.LayerNorm(84),
        nn.GELU(),
        nn.Linear(84, 10),
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-3}),
        ("Adam", {"lr": 1e-3}),
        ("AdamW", {"lr": 1e-3, "amsgrad": True}),
    ],
)
def test_lenet_losses_equal_torch(torch, name, options):
    """Twelve steps with clipping and a one-cycle schedule; in float64, because Adam turns the
    rounding of a gradient that should be 0 into a step of full length."""
    torch.manual_seed(0)
    ours, theirs = _lenet(gg).double(), _lenet(torch).double()
    ours.load_state_dict(theirs.state_dict())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 1, 28, 28))
    y = rng.integers(0, 10, 16)

    def train(lib, model):
        optimizer = getattr(lib.optim, name)(model.parameters(), **options)
        schedule = lib.optim.lr_scheduler.OneCycleLR(optimizer, options["lr"], total_steps=12)
        criterion = lib.nn.CrossEntropyLoss(label_smoothing=0.1)
        inputs, labels = lib.tensor(x), lib.tensor(y)
        losses = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            lib.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    a, b = train(gg, ours), train(torch, theirs)
    np.testing.assert_allclose(a, b, rtol=1e-9)
    assert a[-1] < 0.8 * a[0]
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(
            ours.state_dict()[key].numpy(), value.numpy(), rtol=1e-6, atol=1e-8, err_msg=key
        )
