"""Every layer against torch: repr, state_dict keys, outputs and gradients from the same weights."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn

IMAGE, VECTOR, SEQUENCE = (4, 6, 9, 8), (5, 6), (4, 6, 7)

# name, constructor arguments, shape of the input
LAYERS = [
    ("Identity", (), {}, VECTOR),
    ("Linear", (6, 3), {}, VECTOR),
    ("Linear", (6, 3), {"bias": False}, (2, 3, 6)),
    ("Linear", (6, 3), {}, (6,)),
    ("Flatten", (), {}, IMAGE),
    ("Flatten", (), {"start_dim": 2, "end_dim": -1}, IMAGE),
    ("Unflatten", (1, (2, 3)), {}, VECTOR),
    ("Unflatten", (-1, (-1, 3)), {}, VECTOR),
    ("Conv1d", (6, 4, 3), {"padding": 1, "stride": 2}, SEQUENCE),
    ("Conv1d", (6, 4, 3), {"padding": "same", "dilation": 2, "groups": 2}, SEQUENCE),
    ("Conv2d", (6, 4, 3), {}, IMAGE),
    ("Conv2d", (6, 4, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "bias": False}, IMAGE),
    ("Conv2d", (6, 4, 3), {"padding": "same", "dilation": 2}, IMAGE),
    ("Conv2d", (6, 4, (2, 4)), {"padding": "same"}, IMAGE),
    ("Conv2d", (6, 4, 3), {"padding": "valid"}, IMAGE),
    ("Conv2d", (6, 9, 3), {"groups": 3, "padding": 1}, IMAGE),
    ("Conv2d", (6, 6, 3), {"groups": 6}, IMAGE[1:]),
    ("MaxPool2d", (2,), {}, IMAGE),
    ("MaxPool2d", (3, 2), {"padding": 1, "ceil_mode": True}, IMAGE),
    ("MaxPool2d", ((3, 2),), {"stride": (1, 2), "dilation": (2, 1)}, IMAGE),
    ("AvgPool2d", (2,), {}, IMAGE),
    ("AvgPool2d", (3, 2), {"padding": 1, "count_include_pad": False}, IMAGE),
    ("AvgPool2d", ((3, 2),), {"stride": 1, "ceil_mode": True, "divisor_override": 3}, IMAGE),
    ("AdaptiveAvgPool2d", (1,), {}, IMAGE),
    ("AdaptiveAvgPool2d", ((3, None),), {}, IMAGE),
    ("Dropout", (0.0,), {}, VECTOR),
    ("Dropout", (1.0,), {}, VECTOR),
    ("LayerNorm", (6,), {}, VECTOR),
    ("LayerNorm", ((9, 8),), {"eps": 1e-3, "bias": False}, IMAGE),
    ("LayerNorm", (6,), {"elementwise_affine": False}, VECTOR),
    ("RMSNorm", (6,), {}, VECTOR),
    ("RMSNorm", ((9, 8),), {"eps": 1e-2, "elementwise_affine": False}, IMAGE),
    ("GroupNorm", (3, 6), {}, IMAGE),
    ("GroupNorm", (2, 6), {"affine": False}, SEQUENCE),
    ("BatchNorm1d", (6,), {}, VECTOR),
    ("BatchNorm1d", (6,), {"momentum": None}, SEQUENCE),
    ("BatchNorm2d", (6,), {}, IMAGE),
    ("BatchNorm2d", (6,), {"momentum": 0.3, "eps": 1e-2, "affine": False}, IMAGE),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, IMAGE),
    ("ReLU", (), {}, VECTOR),
    ("LeakyReLU", (0.2,), {}, VECTOR),
    ("ELU", (1.5,), {}, VECTOR),
    ("SiLU", (), {}, VECTOR),
    ("GELU", (), {}, VECTOR),
    ("GELU", (), {"approximate": "tanh"}, VECTOR),
    ("Tanh", (), {}, VECTOR),
    ("Sigmoid", (), {}, VECTOR),
    ("Softplus", (), {}, VECTOR),
    ("Softplus", (2.0, 1.0), {}, VECTOR),
    ("Softmax", (1,), {}, VECTOR),
    ("LogSoftmax", (), {"dim": -1}, IMAGE),
]


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shape"),
    LAYERS,
    ids=[f"{n}-{a}-{k}".replace(" ", "") for n, a, k, _ in LAYERS],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's
def test_layer_equals_torch(torch, rng, name, args, kwargs, shape):
    """Two steps in training mode (statistics move), one in evaluation mode."""
    ours, theirs = getattr(nn, name)(*args, **kwargs), getattr(torch.nn, name)(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(
        {k: torch.from_numpy(v.numpy().copy()) for k, v in ours.state_dict().items()}
    )
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = rng.standard_normal(shape, dtype=np.float32)
        a, b = gg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        assert tuple(y.shape) == tuple(z.shape)
        _close(y, z)
        g = rng.standard_normal(tuple(z.shape), dtype=np.float32)
        ours.zero_grad()
        theirs.zero_grad()
        y.backward(gg.tensor(g))
        z.backward(torch.tensor(g))
        _close(a.grad, b.grad)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            _close(p.grad, q.grad)
        for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
            _close(p, q)


def _close(ours, theirs, rtol=1e-4, atol=2e-5):
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_embedding_equals_torch(torch, rng, padding_idx):
    ours, theirs = nn.Embedding(7, 3, padding_idx), torch.nn.Embedding(7, 3, padding_idx)
    assert repr(ours) == repr(theirs)
    if padding_idx is not None:
        assert ours.weight[padding_idx].abs().sum().item() == 0
    theirs.load_state_dict({"weight": torch.from_numpy(ours.weight.detach().numpy().copy())})
    index = rng.integers(0, 7, (4, 5))
    index[0] = 6
    y, z = ours(gg.tensor(index)), theirs(torch.tensor(index))
    _close(y, z)
    (y * y).sum().backward()
    (z * z).sum().backward()
    _close(ours.weight.grad, theirs.weight.grad)


def test_embedding_from_pretrained():
    table = gg.randn(5, 2)
    layer = nn.Embedding.from_pretrained(table, padding_idx=0)
    assert not layer.weight.requires_grad
    assert gg.equal(layer(gg.tensor([1, 4])), table[[1, 4]])
    assert nn.Embedding.from_pretrained(table, freeze=False).weight.requires_grad
    with pytest.raises(AssertionError):
        nn.Embedding.from_pretrained(gg.ones(3))


@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU", "ELU", "SiLU", "Dropout"])
def test_inplace_writes_into_the_input(torch, name):
    layer = getattr(nn, name)(inplace=True)
    assert repr(layer) == repr(getattr(torch.nn, name)(inplace=True))
    x = gg.tensor([-1.0, 2.0])
    y = layer(x)
    assert y.data_ptr() == x.data_ptr()
    assert gg.equal(x, y)


@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU", "ELU", "SiLU"])
def test_inplace_gradients_equal_torch(torch, rng, name):
    values = rng.standard_normal(VECTOR, dtype=np.float32)

    def grad(lib):
        x = lib.tensor(values, requires_grad=True)
        y = getattr(lib.nn, name)(inplace=True)(x * 2)
        (y * y).sum().backward()
        return x.grad

    _close(grad(gg), grad(torch))


def test_dropout_drops_scales_and_rests():
    gg.manual_seed(0)
    layer, x = nn.Dropout(0.25), gg.ones(20000, requires_grad=True)
    y = layer(x)
    kept = (y != 0).float().mean().item()
    assert abs(kept - 0.75) < 0.02
    assert set(np.unique(y.detach().numpy()).tolist()) == {0.0, np.float32(1 / 0.75)}
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())  # the same mask
    gg.manual_seed(0)
    assert gg.equal(layer(x), y)
    assert gg.equal(layer.eval()(x), x)


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_softmax_chooses_a_dimension_as_torch_does(torch, rng, name, shape):
    x = rng.standard_normal(shape, dtype=np.float32)
    with pytest.warns(UserWarning, match="Implicit dimension"):
        ours, theirs = getattr(nn, name)()(gg.tensor(x)), getattr(torch.nn, name)()(torch.tensor(x))
    _close(ours, theirs)


def test_batch_norm_buffers_follow_momentum_none():
    """The cumulative average over k batches is the mean of their statistics."""
    layer = nn.BatchNorm1d(2, momentum=None)
    batches = [gg.randn(8, 2) * 3 + 1 for _ in range(3)]
    for batch in batches:
        layer(batch)
    expected = sum(b.mean(0) for b in batches) / 3
    np.testing.assert_allclose(layer.running_mean.numpy(), expected.numpy(), rtol=1e-5)
    assert layer.num_batches_tracked.item() == 3
    layer.reset_running_stats()
    assert layer.running_var.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda lib: lib.Conv2d(3, 4, 3, groups=2), ValueError),
        (lambda lib: lib.Conv2d(3, 4, 3, groups=0), ValueError),
        (lambda lib: lib.Conv2d(4, 3, 3, groups=2), ValueError),
        (lambda lib: lib.Conv2d(3, 4, 3, padding="full"), ValueError),
        (lambda lib: lib.Conv2d(3, 4, 3, padding="same", stride=2), ValueError),
        (lambda lib: lib.Conv2d(3, 4, 3, padding_mode="none"), ValueError),
        (lambda lib: lib.Dropout(1.5), ValueError),
        (lambda lib: lib.Embedding(3, 2, padding_idx=3), AssertionError),
        (lambda lib: lib.GroupNorm(2, 3), ValueError),
    ],
)
def test_constructor_errors_are_of_the_class_torch_raises(torch, make, error):
    with pytest.raises(error):
        make(nn)
    with pytest.raises(error):
        make(torch.nn)


@pytest.mark.parametrize(
    ("make", "shape", "error"),
    [
        (lambda lib: lib.Linear(3, 2), (4, 5), RuntimeError),
        (lambda lib: lib.Conv2d(3, 4, 3), (1, 2, 8, 8), RuntimeError),
        (lambda lib: lib.Conv2d(3, 4, 9), (1, 3, 8, 8), RuntimeError),
        (lambda lib: lib.BatchNorm2d(3), (4, 3), ValueError),
        (lambda lib: lib.BatchNorm1d(3), (4, 3, 2, 2), ValueError),
        (lambda lib: lib.BatchNorm1d(3), (4, 5), RuntimeError),
        (lambda lib: lib.BatchNorm1d(3), (1, 3), ValueError),
        (lambda lib: lib.LayerNorm(3), (4, 5), RuntimeError),
        (lambda lib: lib.GroupNorm(2, 4), (1, 3, 2), RuntimeError),
        (lambda lib: lib.Unflatten(1, (2, 2)), (4, 5), RuntimeError),
        (lambda lib: lib.Unflatten(3, (2, 2)), (4, 5), IndexError),
    ],
)
def test_call_errors_are_of_the_class_torch_raises(torch, make, shape, error):
    with pytest.raises(error):
        make(nn)(gg.zeros(*shape))
    with pytest.raises(error):
        make(torch.nn)(torch.zeros(*shape))


def test_embedding_index_out_of_range():
    with pytest.raises(IndexError):
        nn.Embedding(3, 2)(gg.tensor([0, 3]))


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [(lambda lib: lib.Linear(400, 300), 400), (lambda lib: lib.Conv2d(32, 64, 5, groups=2), 400)],
)
def test_default_initial_values_are_distributed_as_in_torch(torch, make, fan_in):
    gg.manual_seed(0)
    torch.manual_seed(0)
    for ours, theirs in zip(make(nn).parameters(), make(torch.nn).parameters(), strict=True):
        a, b = ours.detach().numpy(), theirs.detach().numpy()
        bound = fan_in**-0.5
        assert np.abs(a).max() <= bound * 1.000001
        assert np.abs(a).max() > bound * 0.9
        assert abs(a.std() / b.std() - 1) < (0.02 if a.size > 1000 else 0.25)
        assert abs(a.mean()) < 5 * bound / a.size**0.5


def test_dtype_and_device_arguments():
    for layer in (
        nn.Linear(2, 3, dtype=gg.float64, device="cpu"),
        nn.Conv2d(1, 1, 3, dtype=gg.float64),
        nn.LayerNorm(3, dtype=gg.float64),
        nn.BatchNorm1d(3, dtype=gg.float64),
        nn.Embedding(3, 2, dtype=gg.float64),
    ):
        assert {str(p.dtype) for p in layer.parameters()} == {"float64"}
