"""The optimizer base: groups, state, closures, errors. Error classes are torch's."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpugrad as gg

SGD, Adam = gg.optim.SGD, gg.optim.Adam


def _leaf(*values):
    return gg.tensor(values or (1.0,), requires_grad=True)


def test_groups_get_defaults_and_keep_extras():
    a, b, c = _leaf(), _leaf(), _leaf()
    optimizer = SGD([{"params": [a], "lr": 0.5, "name": "first"}, {"params": b}], lr=0.1)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]
    assert optimizer.param_groups[0]["name"] == "first"
    assert optimizer.param_groups[1]["params"] == [b]
    optimizer.add_param_group({"params": (p for p in [c]), "momentum": 0.9})
    assert optimizer.param_groups[2]["momentum"] == 0.9


def test_named_parameters():
    layer = gg.nn.Linear(2, 2)
    optimizer = Adam(layer.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.param_groups[0]["params"][0] is layer.weight
    with pytest.raises(ValueError, match="names"):
        optimizer.add_param_group({"params": [_leaf()]})


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda lib, t: lib.SGD([]), ValueError),
        (lambda lib, t: lib.SGD(t(1.0)), TypeError),
        (lambda lib, t: lib.SGD([3]), TypeError),
        (lambda lib, t: lib.SGD([t(1.0) * 2]), ValueError),
        (lambda lib, t: lib.SGD([{"params": {t(1.0)}}]), TypeError),
        (lambda lib, t: lib.SGD([t(1.0)]).add_param_group([t(1.0)]), TypeError),
        (lambda lib, t: lib.SGD([("a", t(1.0)), t(2.0)]), ValueError),
        (lambda lib, t: lib.SGD([t(1.0)], lr=-1), ValueError),
        (lambda lib, t: lib.SGD([t(1.0)], momentum=-1), ValueError),
        (lambda lib, t: lib.SGD([t(1.0)], weight_decay=-1), ValueError),
        (lambda lib, t: lib.SGD([t(1.0)], nesterov=True), ValueError),
        (lambda lib, t: lib.SGD([t(1.0)], momentum=0.9, dampening=0.1, nesterov=True), ValueError),
        (lambda lib, t: lib.SGD([t(1.0)], unknown=1), TypeError),
        (lambda lib, t: lib.Adam([t(1.0)], betas=(1.0, 0.9)), ValueError),
        (lambda lib, t: lib.Adam([t(1.0)], betas=(0.9, -0.1)), ValueError),
        (lambda lib, t: lib.Adam([t(1.0)], eps=-1), ValueError),
        (lambda lib, t: lib.AdamW([t(1.0)], lr=float("nan")), ValueError),
        (lambda lib, t: lib.RMSprop([t(1.0)], alpha=-1), ValueError),
        (lambda lib, t: lib.Adagrad([t(1.0)], lr_decay=-1), ValueError),
    ],
)
def test_errors_are_of_the_class_torch_raises(torch, make, error):
    with pytest.raises(error):
        make(gg.optim, lambda v: gg.tensor(v, requires_grad=True))
    with pytest.raises(error):
        make(torch.optim, lambda v: torch.tensor(v, requires_grad=True))


def test_a_parameter_in_two_groups_is_an_error_and_twice_in_one_a_warning():
    p = _leaf()
    with pytest.raises(ValueError, match="more than one parameter group"):
        SGD([{"params": [p]}, {"params": [p]}])
    with pytest.warns(UserWarning, match="duplicate"):
        SGD([p, p])


def test_step_runs_the_closure_with_recording_on():
    p = _leaf(2.0)
    optimizer = SGD([p], lr=0.25)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with gg.no_grad():
        assert optimizer.step(closure).item() == 4.0
    assert p.item() == 1.0
    assert optimizer.step() is None


def test_step_records_nothing_and_keeps_identity():
    p = _leaf(2.0)
    array = p.array
    optimizer = Adam([p])
    (p * p).sum().backward()
    optimizer.step()
    assert p.is_leaf
    assert p.requires_grad
    assert p.array is array  # in place
    assert not any(v.requires_grad for v in optimizer.state[p].values() if isinstance(v, gg.Tensor))


def test_step_is_seen_by_the_tape():
    """Backward after an update of what it saved is an error, not a wrong gradient."""
    p = _leaf(2.0)
    optimizer = SGD([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = gg.ones(1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="in.?place"):
        loss.backward()


def test_parameters_without_gradient_are_left_alone():
    a, b = _leaf(1.0), _leaf(1.0)
    optimizer = Adam([a, b], weight_decay=0.5)
    a.grad = gg.ones(1)
    optimizer.step()
    assert b.item() == 1.0
    assert b not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()  # no gradient at all


def test_zero_grad():
    p = _leaf(2.0)
    optimizer = SGD([p])
    (p * p).sum().backward()
    grad = p.grad
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is grad
    assert grad.item() == 0.0
    optimizer.zero_grad()
    assert p.grad is None


def test_state_dict_has_the_format_of_torch(torch):
    def make(lib):
        a, b = (lib.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
        optimizer = lib.optim.Adam([{"params": [a]}, {"params": [b], "lr": 0.1}], amsgrad=True)
        a.grad = b.grad = lib.tensor([1.0, 1.0])
        optimizer.step()
        return optimizer.state_dict()

    ours, theirs = make(gg), make(torch)
    assert list(ours) == list(theirs)
    assert list(ours["state"]) == list(theirs["state"]) == [0, 1]
    assert list(ours["state"][0]) == list(theirs["state"][0])
    for a, b in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert a["params"] == b["params"]
        assert all(b[key] == value for key, value in a.items())


def test_load_state_dict_copies_and_converts():
    p = gg.tensor([1.0, 2.0], requires_grad=True)
    first = SGD([p], lr=0.1, momentum=0.9)
    p.grad = gg.ones(2)
    first.step()
    state = first.state_dict()
    q = gg.tensor([1.0, 2.0], dtype=gg.float64, requires_grad=True)
    second = SGD([q], lr=0.5)
    second.load_state_dict(state)
    buffer = second.state[q]["momentum_buffer"]
    assert buffer.dtype == gg.float64
    assert second.param_groups[0]["lr"] == 0.1
    assert second.param_groups[0]["params"] == [q]
    first.state[p]["momentum_buffer"].fill_(7.0)
    first.param_groups[0]["lr"] = 7.0
    assert buffer.tolist() == [1.0, 1.0]
    assert second.param_groups[0]["lr"] == 0.1


def test_load_state_dict_errors():
    state = SGD([_leaf(), _leaf()]).state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        SGD([_leaf()]).load_state_dict(state)
    with pytest.raises(ValueError, match="number of parameter groups"):
        SGD([{"params": [_leaf()]}, {"params": [_leaf()]}]).load_state_dict(state)


def test_saved_to_a_file(tmp_path):
    p = _leaf(1.0, 2.0)
    optimizer = Adam([p])
    p.grad = gg.ones(2)
    optimizer.step()
    gg.save(optimizer.state_dict(), tmp_path / "adam.safetensors")
    twin = Adam([_leaf(1.0, 2.0)])
    twin.load_state_dict(gg.load(tmp_path / "adam.safetensors"))
    (state,) = twin.state.values()
    assert gg.equal(state["exp_avg_sq"], optimizer.state[p]["exp_avg_sq"])
    assert state["step"].item() == 1.0


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"])
def test_options_and_repr_are_those_of_torch(torch, name):
    ours = getattr(gg.optim, name)([_leaf()], lr=0.1, foreach=True)
    theirs = getattr(torch.optim, name)([torch.ones(1, requires_grad=True)], lr=0.1, foreach=True)
    absent = {"differentiable"}  # it would need an update that is recorded
    assert set(ours.param_groups[0]) == set(theirs.param_groups[0]) - absent
    lines = repr(theirs).splitlines()
    kept = [line for line in lines if line.strip().split(":")[0] not in absent]
    assert repr(ours).splitlines() == kept


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_foreach_and_fused_change_nothing(torch, name):
    results = []
    for how in ({}, {"fused": True}, {"foreach": True}, {"fused": False, "foreach": False}):
        p = _leaf(1.0, 2.0)
        optimizer = getattr(gg.optim, name)([p], lr=0.1, **how)
        p.grad = gg.tensor([0.5, -1.0])
        optimizer.step()
        results.append(p.tolist())
    assert all(r == results[0] for r in results)
    for library in (torch, gg):
        p = library.ones(1, requires_grad=True)
        with pytest.raises(RuntimeError, match="cannot be `True` together"):
            getattr(library.optim, name)([p], foreach=True, fused=True)


def test_deepcopy_and_pickle():
    p = _leaf(1.0)
    optimizer = SGD([p], lr=0.1, momentum=0.9)
    p.grad = gg.ones(1)
    optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (q,) = twin.param_groups[0]["params"]
        assert q is not p
        np.testing.assert_array_equal(twin.state[q]["momentum_buffer"].numpy(), [1.0])


def test_an_optimizer_of_ones_own():
    class SignDescent(gg.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self, closure=None):
            with gg.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.sub_(group["lr"] * p.grad.sign())

    p = _leaf(1.0)
    optimizer = SignDescent([p], 0.5)
    (3 * p).sum().backward()
    optimizer.step()
    assert p.item() == 0.5
    with pytest.raises(NotImplementedError, match="Optimizer"):
        gg.optim.Optimizer([p], {}).step()
