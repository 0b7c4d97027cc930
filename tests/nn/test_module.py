"""Module: registration, walking, state, conversion, printing; torch is the judge."""

from __future__ import annotations

import copy
import pickle
import weakref

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn


class Block(nn.Module):
    """A module with every kind of thing in it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.scale = nn.Parameter(gg.ones(3))
        self.register_parameter("absent", None)
        self.register_buffer("seen", gg.zeros(3))
        self.register_buffer("cache", gg.zeros(2), persistent=False)
        self.norm = nn.BatchNorm1d(3)
        self.note = "plain"

    def forward(self, x):
        return self.norm(self.fc(x)) * self.scale


def test_registration_by_assignment_and_order():
    block = Block()
    assert [n for n, _ in block.named_parameters()] == [
        "scale",
        "fc.weight",
        "fc.bias",
        "norm.weight",
        "norm.bias",
    ]
    assert [n for n, _ in block.named_buffers()] == [
        "seen",
        "cache",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert [n for n, _ in block.named_children()] == ["fc", "norm"]
    assert [n for n, _ in block.named_modules()] == ["", "fc", "norm"]
    assert block.absent is None
    assert "note" not in dict(block.named_parameters())


def test_reassigning_and_deleting_keep_the_registry_right():
    block = Block()
    block.scale = nn.Parameter(gg.zeros(3))
    assert next(n for n, _ in block.named_parameters()) == "scale"  # keeps its place
    block.scale = None
    assert "scale" not in dict(block.named_parameters())
    block.scale = nn.Parameter(gg.zeros(3))
    del block.fc
    assert [n for n, _ in block.named_children()] == ["norm"]
    assert not hasattr(block, "fc")
    block.seen = gg.ones(3)  # a tensor given to the name of a buffer stays a buffer
    assert "seen" in dict(block.named_buffers())
    block.note = nn.Linear(1, 1)  # a plain attribute may become a module
    assert "note" in dict(block.named_children())


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (lambda m: setattr(m, "scale", gg.ones(3)), TypeError),
        (lambda m: setattr(m, "fc", 3), TypeError),
        (lambda m: setattr(m, "seen", 3), TypeError),
        (lambda m: m.register_parameter("fc", nn.Parameter(gg.ones(1))), KeyError),
        (lambda m: m.register_parameter("a.b", nn.Parameter(gg.ones(1))), KeyError),
        (lambda m: m.register_parameter("", nn.Parameter(gg.ones(1))), KeyError),
        (lambda m: m.register_parameter("new", gg.ones(1)), TypeError),
        (lambda m: m.register_parameter(3, None), TypeError),
        (lambda m: m.register_buffer("scale", gg.ones(1)), KeyError),
        (lambda m: m.register_buffer("new", 3), TypeError),
        (lambda m: m.add_module("new", 3), TypeError),
        (lambda m: m.add_module("forward", nn.Linear(1, 1)), KeyError),
        (lambda m: m.train("yes"), ValueError),
        (lambda m: m.get_submodule("fc.weight"), AttributeError),
        (lambda m: m.get_submodule("nothing"), AttributeError),
        (lambda m: m.get_parameter("seen"), AttributeError),
        (lambda m: m.get_buffer("scale"), AttributeError),
        (lambda m: m.load_state_dict([1, 2]), TypeError),
        (lambda m: m.to(gg.int64), TypeError),
    ],
)
def test_errors_are_of_the_class_torch_raises(torch, action, error):
    with pytest.raises(error):
        action(Block())


def test_assigning_before_init_says_so():
    class Early(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Early()


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Block2"):
        type("Block2", (nn.Module,), {})()(1)


def test_paths():
    block = Block()
    assert block.get_submodule("") is block
    assert block.get_submodule("norm") is block.norm
    assert block.get_parameter("fc.weight") is block.fc.weight
    assert block.get_buffer("norm.running_var") is block.norm.running_var


def test_shared_parameters_and_modules_come_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a
            self.weight = self.a.weight

    tied = Tied()
    assert len(list(tied.parameters())) == 2
    assert len(list(tied.named_parameters(remove_duplicate=False))) == 5
    assert len(list(tied.modules())) == 2
    assert sorted(tied.state_dict()) == ["a.bias", "a.weight", "b.bias", "b.weight", "weight"]


def test_registries_of_torch_are_live_views():
    block = Block()
    block._modules["fc"] = nn.Linear(3, 5)  # the idiom for replacing a layer
    assert block.fc.out_features == 5
    assert list(block._parameters) == ["scale", "absent"]
    assert set(block._buffers) == {"seen", "cache"}
    del block._parameters["scale"]
    assert not hasattr(block, "scale")
    with pytest.raises(KeyError):
        block._buffers["scale"]


def test_state_dict_round_trip():
    a, b = Block(), Block()
    a(gg.randn(4, 3))  # moves the running statistics
    state = a.state_dict()
    assert "cache" not in state
    assert "absent" not in state
    assert not any(v.requires_grad for v in state.values())
    result = b.load_state_dict(state)
    assert repr(result) == "<All keys matched successfully>"
    for key, value in b.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[key].numpy())
    x = gg.randn(4, 3)
    assert gg.equal(a.eval()(x), b.eval()(x))
    assert a.state_dict(prefix="m.", keep_vars=True)["m.scale"] is a.scale


def test_state_dict_keys_and_values_travel_to_torch_and_back(lenet, torch, torch_lenet, rng):
    theirs = torch_lenet.state_dict()
    assert list(lenet.state_dict()) == list(theirs)
    lenet.load_state_dict(theirs)  # arrays of another library
    x = rng.standard_normal((2, 1, 28, 28), dtype=np.float32)
    np.testing.assert_allclose(
        lenet(gg.tensor(x)).detach().numpy(),
        torch_lenet(torch.tensor(x)).detach().numpy(),
        rtol=1e-5,
        atol=1e-6,
    )
    torch_lenet.load_state_dict(
        {k: torch.from_numpy(v.numpy()) for k, v in lenet.state_dict().items()}
    )


def test_load_state_dict_lists_every_problem_and_changes_nothing(torch):
    def make(lib):
        return lib.Sequential(lib.Linear(2, 3), lib.Linear(3, 4))

    ours, theirs = make(nn), make(torch.nn)
    state = {
        "0.weight": np.zeros((3, 2), np.float32),
        "0.bias": np.zeros(9, np.float32),
        "1.weight": np.zeros((4, 4), np.float32),
        "extra": np.zeros(1, np.float32),
    }
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(RuntimeError) as our_error:
        ours.load_state_dict({k: gg.tensor(v) for k, v in state.items()})
    with pytest.raises(RuntimeError) as their_error:
        theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    words = str(their_error.value).replace("torch.Size([9])", "(9,)").replace("[3])", "(3,)")
    words = words.replace("torch.Size([4, 4])", "(4, 4)").replace("torch.Size([4, 3])", "(4, 3)")
    assert str(our_error.value) == words.replace("torch.Size((3,)", "(3,)")
    for key, value in ours.state_dict().items():
        assert gg.equal(value, before[key])


def test_load_state_dict_not_strict_returns_what_did_not_match():
    model = nn.Linear(2, 2)
    result = model.load_state_dict({"weight": gg.ones(2, 2), "other": gg.ones(1)}, strict=False)
    assert result.missing_keys == ["bias"]
    assert result.unexpected_keys == ["other"]
    assert model.weight.sum().item() == 4.0


def test_load_state_dict_copies_and_converts_or_assigns():
    model = nn.Linear(2, 2)
    weight, param = gg.ones(2, 2, dtype=gg.float64), model.weight
    model.load_state_dict({"weight": weight, "bias": gg.zeros(2)})
    assert model.weight is param
    assert model.weight.dtype == gg.float32
    weight.fill_(5.0)
    assert model.weight.max().item() == 1.0
    model.load_state_dict({"weight": weight, "bias": gg.zeros(2)}, assign=True)
    assert isinstance(model.weight, nn.Parameter)
    assert model.weight.dtype == gg.float64


def test_train_eval_apply_and_freezing():
    block = Block()
    block.eval()
    assert not any(m.training for m in block.modules())
    block.train()
    assert all(m.training for m in block.modules())
    seen = []
    assert block.apply(lambda m: seen.append(type(m).__name__)) is block
    assert seen == ["Linear", "BatchNorm1d", "Block"]
    block.requires_grad_(False)
    assert not any(p.requires_grad for p in block.parameters())
    assert not block(gg.randn(4, 3)).requires_grad


def test_zero_grad():
    layer = nn.Linear(2, 2)
    layer(gg.ones(1, 2)).sum().backward()
    grad = layer.weight.grad
    layer.zero_grad(set_to_none=False)
    assert layer.weight.grad is grad
    assert grad.sum().item() == 0
    layer.zero_grad()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_conversion_keeps_identity_gradients_and_integer_buffers():
    block = Block()
    block(gg.randn(4, 3)).sum().backward()
    params, grad = dict(block.named_parameters()), block.fc.weight.grad.clone()
    assert block.double() is block
    assert all(params[n] is p for n, p in block.named_parameters())
    assert {str(p.dtype) for p in block.parameters()} == {"float64"}
    assert block.fc.weight.grad.dtype == gg.float64
    np.testing.assert_allclose(block.fc.weight.grad.numpy(), grad.numpy(), rtol=1e-6)
    assert block.norm.num_batches_tracked.dtype == gg.int64
    assert block.norm.running_mean.dtype == gg.float64
    assert all(p.requires_grad and p.is_leaf for p in block.parameters())
    block.zero_grad()
    block(gg.randn(4, 3, dtype=gg.float64)).sum().backward()  # and they still get gradients
    assert block.fc.weight.grad.dtype == gg.float64
    assert block.float().scale.dtype == gg.float32
    assert block.half().scale.dtype == gg.float16
    assert block.to("cpu", gg.float32).scale.dtype == gg.float32
    assert block.to(gg.zeros(1, dtype=gg.float64)).scale.dtype == gg.float64
    assert block.to(device="cpu", dtype=gg.float32).cpu().scale.dtype == gg.float32


def test_an_optimizer_made_before_a_conversion_goes_on_working():
    layer = nn.Linear(2, 1)
    optimizer = gg.optim.SGD(layer.parameters(), lr=0.1)
    layer.double()
    before = layer.weight.detach().clone()
    layer(gg.ones(1, 2, dtype=gg.float64)).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(layer.weight.detach().numpy(), before.numpy() - 0.1)


@pytest.mark.skipif("gg.cuda.is_available()")
def test_cuda_without_a_gpu_is_a_clear_error():
    for move in (lambda m: m.cuda(), lambda m: m.cuda(0), lambda m: m.to(0)):
        layer = nn.Linear(1, 1)
        with pytest.raises((RuntimeError, AssertionError, ImportError)):
            move(layer)
        assert str(layer.weight.device) == "cpu"


def test_a_conversion_that_changes_nothing_keeps_the_memory():
    layer = nn.Linear(2, 2)
    array = layer.weight.array
    assert layer.to("cpu").float().weight.array is array


def test_deepcopy_and_pickle(lenet):
    x = gg.randn(2, 1, 28, 28)
    expected = lenet(x).detach().numpy()
    lenet.fc1.register_forward_pre_hook(_identity_hook)
    for twin in (copy.deepcopy(lenet), pickle.loads(pickle.dumps(lenet))):
        assert isinstance(twin.fc1.weight, nn.Parameter)
        assert twin.fc1.weight is not lenet.fc1.weight
        np.testing.assert_array_equal(twin(x).detach().numpy(), expected)
        twin.fc3.bias.data.fill_(7.0)
        assert list(twin.state_dict()) == list(lenet.state_dict())
    assert lenet.fc3.bias.max().item() < 1


def _identity_hook(module, args):
    return None


def test_deepcopy_keeps_shared_parameters_shared():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    twin = copy.deepcopy(model)
    assert twin[1].weight is twin[0].weight


def test_a_dropped_module_is_freed_at_once():
    layer = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    layer(gg.ones(1, 2)).sum().backward()
    ref = weakref.ref(layer[0])
    del layer
    assert ref() is None  # no reference cycle


def test_repr_is_that_of_torch(lenet, torch_lenet):
    assert repr(lenet) == repr(torch_lenet)
    assert repr(Block().norm).startswith("BatchNorm1d(3, eps=1e-05")


def test_repr_with_children_and_extra_text(torch):
    def body(lib):
        class Both(lib.Module):
            def __init__(self):
                super().__init__()
                self.inner = lib.Sequential(lib.Linear(1, 2), lib.Sequential())
                self.gone = None

            def extra_repr(self):
                return "a=1\nb=2"

        return Both()

    assert repr(body(nn)) == repr(body(torch.nn))


def test_errors_name_the_module_and_the_shapes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

        def forward(self, x):
            return self.body(x)

    with pytest.raises(RuntimeError) as info:
        Net()(gg.zeros(8, 1, 20, 20))
    notes = "\n".join(info.value.__notes__)
    assert "Linear(in_features=256, out_features=10, bias=True)" in notes
    assert "(8, 400)" in notes
    assert "Net.body.1" in notes
    assert len(info.value.__notes__) == 1


def test_keyword_arguments_reach_forward():
    class Add(nn.Module):
        def forward(self, a, *, b):
            return a + b

    assert Add()(gg.ones(1), b=gg.ones(1)).item() == 2.0
