"""Every loss against torch: value and gradients, all reductions."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn

REAL, CLASSES, PROBABILITIES, UNIT = "real", "classes", "probabilities", "unit"

# name, keyword arguments (lists become tensors), kind of input, kind of target
LOSSES = [
    ("MSELoss", {}, REAL, REAL),
    ("L1Loss", {}, REAL, REAL),
    ("SmoothL1Loss", {}, REAL, REAL),
    ("SmoothL1Loss", {"beta": 0.5}, REAL, REAL),
    ("HuberLoss", {"delta": 0.7}, REAL, REAL),
    ("NLLLoss", {}, REAL, CLASSES),
    ("NLLLoss", {"weight": [1.0, 2.0, 0.5], "ignore_index": 1}, REAL, CLASSES),
    ("CrossEntropyLoss", {}, REAL, CLASSES),
    ("CrossEntropyLoss", {"weight": [1.0, 2.0, 0.5], "label_smoothing": 0.1}, REAL, CLASSES),
    ("CrossEntropyLoss", {"ignore_index": 2}, REAL, CLASSES),
    ("CrossEntropyLoss", {"label_smoothing": 0.2}, REAL, PROBABILITIES),
    ("BCELoss", {}, UNIT, UNIT),
    ("BCELoss", {"weight": [1.0, 2.0, 0.5]}, UNIT, UNIT),
    ("BCEWithLogitsLoss", {}, REAL, UNIT),
    ("BCEWithLogitsLoss", {"pos_weight": [1.0, 2.0, 0.5]}, REAL, UNIT),
    ("KLDivLoss", {}, REAL, PROBABILITIES),
    ("KLDivLoss", {"log_target": True}, REAL, REAL),
]


def _draw(rng, kind):
    if kind == CLASSES:
        return rng.integers(0, 3, 6)
    values = rng.standard_normal((6, 3), dtype=np.float32)
    if kind == PROBABILITIES:
        values = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    return 1 / (1 + np.exp(-values)) if kind == UNIT else values


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("name", "kwargs", "kind", "target_kind"),
    LOSSES,
    ids=[f"{n}-{'-'.join(k)}-{t}" for n, k, _, t in LOSSES],
)
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss")  # torch's
def test_loss_equals_torch(torch, rng, name, kwargs, kind, target_kind, reduction):
    def make(lib, tensor):
        options = {k: tensor(v) if isinstance(v, list) else v for k, v in kwargs.items()}
        return getattr(lib, name)(**options, reduction=reduction)

    ours, theirs = make(nn, gg.tensor), make(torch.nn, torch.tensor)
    assert repr(ours) == repr(theirs)
    x, t = _draw(rng, kind), _draw(rng, target_kind)
    a, b = gg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a, gg.tensor(t)), theirs(b, torch.tensor(t))
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-4, atol=1e-5)
    g = rng.standard_normal(tuple(z.shape)).astype(np.float32)
    y.backward(gg.tensor(g))
    z.backward(torch.tensor(g))
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_kl_div_batchmean(torch, rng):
    x, t = _draw(rng, REAL), _draw(rng, PROBABILITIES)
    ours = nn.KLDivLoss(reduction="batchmean")(gg.tensor(x), gg.tensor(t)).item()
    theirs = torch.nn.KLDivLoss(reduction="batchmean")(torch.tensor(x), torch.tensor(t)).item()
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_cross_entropy_over_positions(torch, rng):
    """(N, C, positions) as in segmentation and language models."""
    x, t = rng.standard_normal((2, 5, 4), dtype=np.float32), rng.integers(0, 5, (2, 4))
    ours = nn.CrossEntropyLoss()(gg.tensor(x), gg.tensor(t)).item()
    theirs = torch.nn.CrossEntropyLoss()(torch.tensor(x), torch.tensor(t)).item()
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_weights_are_buffers():
    loss = nn.CrossEntropyLoss(weight=gg.ones(3))
    assert list(loss.state_dict()) == ["weight"]
    assert loss.double().weight.dtype == gg.float64
    assert not list(loss.parameters())


def test_errors():
    with pytest.raises(ValueError, match="reduction"):
        nn.MSELoss(reduction="average")
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        nn.CrossEntropyLoss()(gg.zeros(2, 3), gg.tensor([0, 3]))
    with pytest.raises(ValueError):
        nn.CrossEntropyLoss()(gg.zeros(2, 3), gg.tensor([0, 1, 2]))
