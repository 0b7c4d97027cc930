"""Making tensors, against torch: dtypes, shapes, values, sharing, errors."""

import numpy as np
import pytest

import gpugrad as gg

A = np.arange(6.0).reshape(2, 3)

CASES = {
    "tensor of a number": lambda t: t.tensor(1.5),
    "tensor of an int": lambda t: t.tensor(7),
    "tensor of a bool": lambda t: t.tensor(True),
    "tensor of a complex": lambda t: t.tensor([1 + 2j]),
    "tensor of a list": lambda t: t.tensor([[1, 2], [3, 4]]),
    "tensor of floats": lambda t: t.tensor([[1.0, 2], [3, 4]]),
    "tensor of bools": lambda t: t.tensor([True, False]),
    "tensor of bools and ints": lambda t: t.tensor([True, 2]),
    "tensor of a tuple": lambda t: t.tensor(((1.0,), (2.0,))),
    "tensor of nothing": lambda t: t.tensor([]),
    "tensor of empty lists": lambda t: t.tensor([[], []]),
    "tensor with dtype": lambda t: t.tensor([1.7, -1.7], dtype=t.int64),
    "tensor of an array": lambda t: t.tensor(A),
    "tensor of a float32 array": lambda t: t.tensor(A.astype(np.float32)),
    "tensor of a NumPy number": lambda t: t.tensor(np.float64(2.5)),
    "tensor of NumPy numbers": lambda t: t.tensor([np.float64(2.5), np.float64(1.5)]),
    "tensor of a big int": lambda t: t.tensor(2**40),
    "tensor of 0-d tensors": lambda t: t.tensor([t.tensor(1.0), t.tensor(2.0)]),
    "zeros": lambda t: t.zeros(2, 3),
    "zeros of a tuple": lambda t: t.zeros((2, 3), dtype=t.int32),
    "zeros of nothing": lambda t: t.zeros(()),
    "zeros of an empty shape": lambda t: t.zeros(0, 3),
    "ones": lambda t: t.ones([2], dtype=t.bool),
    "full": lambda t: t.full((2, 2), 7),
    "full of a float": lambda t: t.full((2,), 1.5),
    "full of a bool": lambda t: t.full((2,), True),
    "full of nothing": lambda t: t.full((), 3.0),
    "full with dtype": lambda t: t.full((2,), 3, dtype=t.float64),
    "zeros_like": lambda t: t.zeros_like(t.ones(2, 3, dtype=t.int16)),
    "ones_like": lambda t: t.ones_like(t.zeros(2), dtype=t.float64),
    "full_like": lambda t: t.full_like(t.zeros(2, dtype=t.int64), 2),
    "arange": lambda t: t.arange(5),
    "arange of floats": lambda t: t.arange(0.0, 1.0, 0.25),
    "arange backwards": lambda t: t.arange(5, 0, -2),
    "arange of one float": lambda t: t.arange(2.5),
    "arange of tenths": lambda t: t.arange(0, 1, 0.1),
    "arange of nothing": lambda t: t.arange(3, 3),
    "arange with dtype": lambda t: t.arange(1, 4, dtype=t.float32),
    "arange, step by name": lambda t: t.arange(0, 10, step=3),
    "arange, by name": lambda t: t.arange(start=2, end=5),
    "linspace": lambda t: t.linspace(0, 1, 5),
    "linspace backwards": lambda t: t.linspace(3.0, -3.0, steps=7),
    "linspace of one": lambda t: t.linspace(2, 3, 1),
    "linspace of none": lambda t: t.linspace(2, 3, 0),
    "linspace of ints": lambda t: t.linspace(0, 10, 5, dtype=t.int64),
    "logspace": lambda t: t.logspace(0, 2, 3, dtype=t.float64),
    "logspace base 2": lambda t: t.logspace(0, 4, 5, 2.0),
    "eye": lambda t: t.eye(3),
    "eye, not square": lambda t: t.eye(2, 3, dtype=t.int64),
    "meshgrid": lambda t: t.meshgrid(t.arange(2), t.arange(3), indexing="ij"),
    "meshgrid xy": lambda t: t.meshgrid(t.arange(2), t.arange(3), indexing="xy"),
    "meshgrid of a list": lambda t: t.meshgrid([t.arange(2), t.arange(3)], indexing="ij"),
    "as_tensor": lambda t: t.as_tensor([1, 2]),
    "asarray": lambda t: t.asarray([1.0, 2.0]),
    "new_zeros": lambda t: t.ones(2, dtype=t.int16).new_zeros(3, 1),
    "new_ones": lambda t: t.ones(2, dtype=t.float64).new_ones((3,), dtype=t.float32),
    "new_full": lambda t: t.ones(2, dtype=t.float64).new_full((2,), 3),
    "new_tensor": lambda t: t.ones(2, dtype=t.float64).new_tensor([1, 2]),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(judge, name):
    # NumPy and torch round the points of linspace in different ways: one ulp
    tolerance = 2e-7 if "space" in name or "tenths" in name else 0.0
    judge(CASES[name], gradient=False, rtol=tolerance, atol=0)


ERRORS = {
    "ragged list": lambda t: t.tensor([[1, 2], [3]]),
    "text": lambda t: t.tensor("text"),
    "negative size": lambda t: t.zeros(-1),
    "float size": lambda t: t.zeros(1.5),
    "unknown device": lambda t: t.zeros(1, device="tpu9"),
    "integers with gradient": lambda t: t.tensor([1], requires_grad=True),
    "arange with step 0": lambda t: t.arange(0, 5, 0),
    "arange the wrong way": lambda t: t.arange(5, 0),
    "linspace of -1": lambda t: t.linspace(0, 1, -1),
    "eye of -1": lambda t: t.eye(-1),
    "from_numpy of a list": lambda t: t.from_numpy([1.0]),
    "from_numpy of objects": lambda t: t.from_numpy(np.array([object()])),
    "randint backwards": lambda t: t.randint(5, 2, (3,)),
    "randperm of -1": lambda t: t.randperm(-1),
    "multinomial of negative": lambda t: t.multinomial(t.tensor([-1.0, 1.0]), 1),
    "multinomial of zeros": lambda t: t.multinomial(t.tensor([0.0, 0.0]), 1),
    "multinomial of too many": lambda t: t.multinomial(t.tensor([0.5, 0.5]), 3),
    "bernoulli above 1": lambda t: t.bernoulli(t.tensor([1.5])),
    "normal with negative std": lambda t: t.normal(0.0, -1.0, (3,)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_the_classes_of_torch(judge, name):
    judge.same_error(ERRORS[name])


# ------------------------------------------------------------------------------------------------
# what shares memory


def test_tensor_copies():
    a = np.zeros(2)
    t = gg.tensor(a)
    u = gg.tensor(t)
    a[0] = 1.0
    t[1] = 5.0
    assert t.tolist() == [0.0, 5.0]
    assert u.tolist() == [0.0, 0.0]


def test_as_tensor_and_from_numpy_share():
    a = np.zeros(2)
    for t in (gg.as_tensor(a), gg.from_numpy(a), gg.asarray(a), gg.Tensor(a)):
        t[0] += 1.0
    assert a[0] == 4.0
    t = gg.zeros(2)
    assert gg.as_tensor(t) is t
    assert gg.as_tensor(t, dtype=gg.float64) is not t
    assert gg.as_tensor(a, dtype=gg.float64).array is a


def test_as_tensor_keeps_history():
    x = gg.ones(2, requires_grad=True)
    gg.as_tensor(x * 2, dtype=gg.float64).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_tensor_cuts_history():
    x = gg.ones(2, requires_grad=True)
    assert not gg.tensor(x * 2).requires_grad
    assert gg.tensor(x, requires_grad=True).is_leaf


def test_from_dlpack_shares_memory(torch):
    u = torch.zeros(3)
    t = gg.from_dlpack(u)
    t[1] = 5.0
    assert u.tolist() == [0.0, 5.0, 0.0]
    back = torch.from_dlpack(t)
    back[2] = 7.0
    assert t.tolist() == [0.0, 5.0, 7.0]
    assert np.from_dlpack(t).tolist() == [0.0, 5.0, 7.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: gg.tensor([1.0], **k), lambda **k: gg.zeros(1, **k),
        lambda **k: gg.ones(1, **k), lambda **k: gg.empty(1, **k),
        lambda **k: gg.full((1,), 2.0, **k), lambda **k: gg.eye(1, **k),
        lambda **k: gg.arange(1.0, **k), lambda **k: gg.linspace(0, 1, 2, **k),
        lambda **k: gg.rand(1, **k), lambda **k: gg.randn(1, **k),
        lambda **k: gg.zeros_like(gg.ones(1), **k), lambda **k: gg.rand_like(gg.ones(1), **k),
        lambda **k: gg.asarray([1.0], **k),
    ],
)  # fmt: skip
def test_requires_grad_and_device(make):
    assert make(requires_grad=True).requires_grad
    assert make(requires_grad=True).is_leaf
    assert not make().requires_grad
    assert make(device="cpu").device == gg.device("cpu")


@pytest.mark.parametrize("data", [["a"], None, [object()], {"a": 1}])
def test_what_is_no_number(data):
    with pytest.raises(TypeError, match="cannot make a tensor"):
        gg.tensor(data)
