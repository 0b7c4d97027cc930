"""bfloat16: every row is computed in float32 and rounded once; torch is the judge of the rest."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.ops import REGISTRY
from gpugrad.ops.core import Elementwise
from gpugrad.tensor import wrap
from tests.test_registry import HAVE_SAMPLES, Draw, samples

pytest.importorskip("ml_dtypes")
bfloat16 = gg.bfloat16


def rounded(a):
    """An array with every float rounded to bfloat16 (and float32 again)."""
    a = np.asarray(a)
    return a.astype(bfloat16).astype(np.float32) if a.dtype.kind == "f" else a


def narrow(a):
    return a.astype(bfloat16) if is_real(a) else a


def is_real(a):
    return getattr(a, "dtype", np.dtype(int)).kind in "fV"


def evaluate(op, args, params):
    """The result and the gradients of the arguments, as arrays."""
    where = [i for i in range(len(args)) if op.differentiable(i) and is_real(args[i])]
    xs = {i: wrap(np.array(args[i])).requires_grad_() for i in where}
    y = op(*[xs.get(i, a) for i, a in enumerate(args)], **params)
    if not where or not y.requires_grad:
        return y.array, []
    cotangent = np.random.default_rng(3).normal(size=y.shape).astype(np.float32)
    g = wrap(rounded(cotangent).astype(y.dtype))
    grads = gg.autograd.grad(y, list(xs.values()), g, allow_unused=True)
    return y.array, [None if d is None else d.array for d in grads]


@pytest.mark.parametrize("name", [n for n in HAVE_SAMPLES if n not in ("cast", "to_device")])
def test_row_is_computed_in_float32_and_rounded(name):
    op = REGISTRY[name]
    for args, params in samples(op, Draw(sum(map(ord, name)))):
        args = [rounded(a) if hasattr(a, "dtype") else a for a in args]
        expected, expected_grads = evaluate(op, args, params)
        result, grads = evaluate(op, [narrow(a) for a in args], params)
        assert result.dtype == (bfloat16 if expected.dtype.kind == "f" else expected.dtype)
        # where the derivative reads the output, that is the rounded one
        exact = not op.reads_output(tuple(op.differentiable(i) for i in range(len(args))))
        np.testing.assert_array_equal(narrow(expected), result)
        for e, d in zip(expected_grads, grads, strict=True):
            if e is None:
                assert d is None
                continue
            assert d.dtype == bfloat16
            if exact and (not op.broadcasts or e.shape == result.shape):  # not summed once more
                np.testing.assert_array_equal(narrow(e), d)
            else:
                scale = max(1.0, float(np.abs(e).max(initial=0)))
                np.testing.assert_allclose(d.astype(np.float32), e, rtol=0.02, atol=0.02 * scale)


@pytest.mark.parametrize("name", [n for n in HAVE_SAMPLES if isinstance(REGISTRY[n], Elementwise)])
def test_large_arrays(name):
    op = REGISTRY[name]
    args, _ = next(samples(op, Draw(5)))
    args = [np.resize(rounded(a) if a.dtype.kind == "f" else a, 50_001) for a in args]
    args = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in args]
    expected = op(*[wrap(a) for a in args]).array
    np.testing.assert_array_equal(op(*[wrap(narrow(a)) for a in args]).array, narrow(expected))


def test_import_is_lazy():
    code = (
        "import sys, gpugrad as gg\n"
        "x = gg.tensor([1.0], requires_grad=True); (x * 2).sum().backward(); gg.zeros(2).half()\n"
        "gg.dtypes.is_floating(gg.int64), gg.dtypes.is_number(gg.dtype('V2'))\n"
        "assert 'ml_dtypes' not in sys.modules\n"
        "gg.zeros(2, dtype='bfloat16')\n"
        "assert 'ml_dtypes' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_an_array_brings_its_dtype():
    """gg.bfloat16 was never asked for: the array alone says what it is."""
    code = (
        "import numpy as np, ml_dtypes, gpugrad as gg\n"
        "x = gg.Tensor(np.ones((2, 3), ml_dtypes.bfloat16), requires_grad=True)\n"
        "y = x @ x.T\n"
        "assert y.dtype == gg.bfloat16 and y.tolist() == [[3.0, 3.0], [3.0, 3.0]]\n"
        "(y * 0.5).sum().backward()\n"
        "assert x.grad.dtype == gg.bfloat16 and x.grad.tolist() == [[2.0] * 3] * 2\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_missing_ml_dtypes_names_the_remedy():
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import gpugrad as gg\n"
        "try: gg.zeros(2, dtype=gg.bfloat16)\n"
        "except ImportError as e: assert 'pip install' in str(e)\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_creation_and_conversion():
    assert gg.tensor([1, 2.5], dtype=gg.bfloat16).tolist() == [1.0, 2.5]
    for made in (
        gg.zeros(3, dtype=bfloat16), gg.ones(3, dtype=bfloat16), gg.full((3,), 2.5, dtype=bfloat16),
        gg.arange(3, dtype=bfloat16), gg.linspace(0, 1, 3, dtype=bfloat16),
        gg.rand(3, dtype=bfloat16), gg.randn(3, dtype=bfloat16), gg.ones(3).bfloat16(),
        gg.ones(3).to(gg.bfloat16), gg.ones(3).to("cpu", gg.bfloat16), gg.eye(3, dtype=bfloat16),
        gg.ones(3).type(gg.bfloat16), gg.ones_like(gg.ones(3, dtype=bfloat16)),
        gg.empty(3, dtype=bfloat16), gg.normal(0.0, 1.0, (3,), dtype=bfloat16),
    ):  # fmt: skip
        assert made.dtype == bfloat16 and made.is_floating_point()
    assert (gg.rand(4000, dtype=bfloat16) < 1).all()
    x = gg.tensor(2.71828, dtype=bfloat16)
    assert x.item() == 2.71875 and float(x) == 2.71875 and isinstance(x.item(), float)
    assert gg.finfo(bfloat16).eps == 2**-7
    assert x.bfloat16() is x
    assert (x * 2.0).dtype == (x + 1).dtype == (2 / x).dtype == (x**2.5).dtype == bfloat16


def test_default_dtype():
    gg.set_default_dtype(gg.bfloat16)
    try:
        assert gg.tensor([1.5]).dtype == gg.rand(2).dtype == (gg.arange(3) / 2).dtype == bfloat16
    finally:
        gg.set_default_dtype(gg.float32)


def test_repr_and_pickle():
    x = gg.tensor([1.0, 2.5], dtype=bfloat16)
    assert repr(x) == "tensor([1. , 2.5], dtype=bfloat16)"
    assert pickle.loads(pickle.dumps(x)).dtype == bfloat16


def test_in_place_writes():
    x = gg.ones(4, dtype=bfloat16)
    x += 0.5
    x.mul_(2.0).add_(gg.ones(4, dtype=bfloat16))
    x[1] = 7.0
    x[2:] = gg.tensor([1.0, 2.0])
    assert x.dtype == bfloat16 and x.tolist() == [4.0, 7.0, 1.0, 2.0]
    y = gg.zeros(3, dtype=bfloat16, requires_grad=True)
    z = y * 1.0
    z[1] = 3.0
    z.sum().backward()
    assert y.grad.tolist() == [1.0, 0.0, 1.0] and y.grad.dtype == bfloat16


def test_views_share_memory():
    x = gg.zeros(2, 3, dtype=bfloat16)
    x.T[1, 0] = 5.0
    x.reshape(-1)[0] = 1.0
    assert x.tolist() == [[1.0, 5.0, 0.0], [0.0, 0.0, 0.0]]


def test_gradients_accumulate_in_bfloat16():
    x = gg.ones(3, dtype=bfloat16, requires_grad=True)
    for _ in range(2):
        (x * 2).sum().backward()
    y = x * 3
    (y + y.float()).sum().backward()
    assert x.grad.dtype == bfloat16 and x.grad.tolist() == [10.0] * 3
    g = gg.autograd.grad((x * x * x).sum(), x, create_graph=True)[0]
    (h,) = gg.autograd.grad(g.sum(), x)
    assert h.dtype == bfloat16 and h.tolist() == [6.0] * 3


def test_numpy_functions_and_operators():
    x = gg.tensor([0.5, 1.0], dtype=bfloat16)
    assert np.exp(x).dtype == bfloat16
    assert x.numpy().dtype == bfloat16
    assert (x == gg.tensor([0.5, 2.0], dtype=bfloat16)).tolist() == [True, False]
    assert x.max().item() == 1.0 and x.argsort().tolist() == [0, 1]
    assert gg.where(x > 0.7, x, 0.0).dtype == bfloat16
    assert gg.allclose(x, x) and gg.equal(x, x.clone())


def test_a_model_trains():
    gg.manual_seed(0)
    model = gg.nn.Sequential(
        gg.nn.Conv2d(1, 4, 3), gg.nn.ReLU(), gg.nn.MaxPool2d(2), gg.nn.Flatten(),
        gg.nn.Linear(36, 10), gg.nn.LayerNorm(10), gg.nn.Dropout(0.1), gg.nn.Linear(10, 3),
    ).bfloat16()  # fmt: skip
    x, t = gg.randn(16, 1, 8, 8, dtype=bfloat16), gg.randint(0, 3, (16,))
    optimizer = gg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), t)
        loss.backward()
        assert all(p.grad.dtype == bfloat16 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_save_and_load(tmp_path):
    x = gg.randn(3, 4, dtype=bfloat16)
    gg.save({"x": x, "t": x.T}, tmp_path / "x.safetensors")
    code = (
        "import sys, gpugrad as gg\n"
        f"d = gg.load({str(tmp_path / 'x.safetensors')!r})\n"
        "assert d['x'].dtype == gg.bfloat16 and d['t'].shape == (4, 3)\n"
        "print(d['x'].float().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(x.float().tolist())


def test_dlpack_with_torch(torch):
    t = torch.randn(3, 4).bfloat16()
    x = gg.from_dlpack(t)
    assert x.dtype == bfloat16 and x.data_ptr() == t.data_ptr()
    assert x.tolist() == t.tolist() and gg.tensor(t.T).tolist() == t.T.tolist()
    x[0, 0] = 7.0
    assert t[0, 0] == 7
    u = torch.from_dlpack(gg.ones(2, 3, dtype=bfloat16).T)
    assert u.dtype == torch.bfloat16 and u.shape == (3, 2) and (u == 1).all()


def test_dlpack_refuses_other_foreign_dtypes(torch):
    with pytest.raises(TypeError, match="from_dlpack"):
        gg.from_dlpack(torch.ones(2).to(torch.float8_e4m3fn))


@pytest.mark.parametrize("name", ["exp", "tanh", "sqrt", "sigmoid", "softmax", "matmul", "mean"])
def test_values_are_torchs(torch, name):
    rng = np.random.default_rng(0)
    a = np.abs(rng.normal(size=(6, 6))).astype(np.float32)
    x = gg.tensor(a).bfloat16().requires_grad_()
    u = torch.tensor(a).bfloat16().requires_grad_()
    call = {
        "softmax": lambda lib, v: lib.softmax(v, -1),
        "matmul": lambda lib, v: v @ v,
    }.get(name, lambda lib, v: getattr(lib, name)(v))
    y, v = call(gg, x), call(torch, u)
    y.sum().backward()
    v.sum().backward()
    np.testing.assert_allclose(y.float().detach().numpy(), v.float().detach().numpy(), rtol=2e-2)
    np.testing.assert_allclose(x.grad.float().numpy(), u.grad.float().numpy(), rtol=2e-2, atol=2e-2)
