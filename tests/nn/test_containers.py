"""Containers, compared with torch by repr and state_dict keys after the same operations."""

from __future__ import annotations

from collections import OrderedDict

import pytest

import gpugrad as gg
from gpugrad import nn


def _sequential_steps(lib):
    """Every way of changing a Sequential; yields it after each."""
    model = lib.Sequential(lib.Linear(1, 1), lib.ReLU())
    yield model
    model.append(lib.Linear(1, 2))
    yield model
    model[0] = lib.Linear(1, 1, bias=False)
    yield model
    yield model[1:]
    yield model[-1]
    model.insert(1, lib.Tanh())
    yield model
    model.insert(-1, lib.Sigmoid())
    yield model
    del model[0]
    yield model
    del model[1:3]
    yield model
    model.extend([lib.Identity(), lib.Flatten()])
    yield model
    yield model.pop(0)
    yield model
    yield model + lib.Sequential(lib.ReLU())
    model += lib.Sequential(lib.ReLU())
    yield model
    yield lib.Sequential(OrderedDict(first=lib.Linear(1, 1), second=lib.ReLU()))[:1]


def _list_steps(lib):
    layers = lib.ModuleList([lib.Linear(1, 1) for _ in range(3)])
    yield layers
    layers.append(lib.ReLU())
    yield layers
    layers.insert(1, lib.Tanh())
    yield layers
    layers[0] = lib.Identity()
    yield layers
    yield layers[1:4]
    del layers[0]
    yield layers
    layers += [lib.ReLU(), lib.ReLU()]
    yield layers
    yield layers + [lib.Tanh()]
    yield layers.pop(-1)
    yield lib.ModuleList()


@pytest.mark.parametrize("steps", [_sequential_steps, _list_steps])
def test_same_changes_same_repr_and_keys(torch, steps):
    for ours, theirs in zip(steps(nn), steps(torch.nn), strict=True):
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())


def test_sequential_calls_in_order_and_repeats_shared_modules():
    class AddOne(nn.Module):
        def forward(self, x):
            return x + 1

    one = AddOne()
    model = nn.Sequential(one, nn.Identity(), one)
    assert model(gg.tensor(0.0)).item() == 2.0
    assert len(model) == 3
    assert list(model) == [one, model[1], one]
    assert nn.Sequential()(gg.tensor(5.0)).item() == 5.0


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda: nn.Sequential(nn.ReLU())[1], IndexError),
        (lambda: nn.Sequential(nn.ReLU()) + nn.ReLU(), ValueError),
        (lambda: nn.Sequential(3), TypeError),
        (lambda: nn.Sequential().insert(0, 3), AssertionError),
        (lambda: nn.Sequential().insert(1, nn.ReLU()), IndexError),
        (lambda: nn.ModuleList([nn.ReLU()])[2], IndexError),
        (lambda: nn.ModuleList().extend(3), TypeError),
        (lambda: nn.ModuleList().__delitem__(0), IndexError),
        (lambda: nn.ModuleDict({"keys": nn.ReLU()}), KeyError),
        (lambda: nn.ModuleDict(3), TypeError),
        (lambda: nn.ModuleDict()["a"], KeyError),
        (lambda: nn.ParameterList().extend(gg.ones(2)), TypeError),
        (lambda: nn.ParameterList()[0], IndexError),
        (lambda: nn.ModuleList()(1), NotImplementedError),
    ],
)
def test_errors(action, error):
    with pytest.raises(error):
        action()


def test_module_dict(torch):
    def body(lib):
        heads = lib.ModuleDict({"a": lib.Linear(1, 1)})
        heads["b"] = lib.ReLU()
        heads.update([("c", lib.Tanh())])
        heads.update(lib.ModuleDict({"d": lib.Identity()}))
        heads.pop("b")
        return heads

    ours = body(nn)
    assert repr(ours) == repr(body(torch.nn))
    assert list(ours) == ["a", "c", "d"] == list(ours.keys())
    assert "c" in ours
    assert "b" not in ours
    assert [name for name, _ in ours.items()] == list(ours)
    assert next(iter(ours.values())) is ours["a"]
    ours.clear()
    assert len(ours) == 0
    assert not list(ours.parameters())


def test_parameter_list():
    weights = nn.ParameterList([gg.ones(2), nn.Parameter(gg.ones(3))])
    weights.append(gg.ones(2, 2))
    weights += [gg.ones(1)]
    weights[0] = gg.zeros(5)
    assert [w.numel() for w in weights] == [5, 3, 4, 1]
    assert len(weights[1:]) == 3
    assert all(isinstance(w, nn.Parameter) for w in weights)
    assert list(weights.state_dict()) == ["0", "1", "2", "3"]
    assert repr(weights).splitlines()[1].strip() == (
        "(0): Parameter containing: [float32 of size 5]"
    )
