"""Rung 1: the operations on a strict stand-in for CuPy arrays (``make strict``).

tests/cuda/test_operations.py runs on the stand-in as on a device; here is what only the stand-in
can see, and that it says no. Further down it is held to the real CuPy.
"""

import types

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.ops import REGISTRY
from tests.cuda import host_device, strict
from tests.test_registry import HAVE_SAMPLES, Draw, samples

on_the_stand_in = pytest.mark.skipif(
    not strict.active(), reason="needs the stand-in for CuPy: make strict"
)


# ------------------------------------------------------------------------------------------------
# the operations


def has_mask(args) -> bool:
    return any(isinstance(a, np.ndarray) and a.dtype == bool for a in args)


@on_the_stand_in
@pytest.mark.parametrize("name", [n for n in HAVE_SAMPLES if n != "to_device"])  # it does wait
def test_no_row_waits_for_the_device(name):
    """Forward, backward and double backward; but for boolean masks as an index, whose results have
    a size that only the device knows."""
    op = REGISTRY[name]
    for args, params in samples(op, Draw(1)):
        if name in ("take", "put", "put_add") and has_mask(args):
            continue
        if any(a.dtype.kind in "iu" for a in args if isinstance(a, np.ndarray)):
            continue  # checks of positions need kernels: tests/cuda/test_index.py
        tensors = [gg.tensor(a, device="cuda") if isinstance(a, np.ndarray) else a for a in args]
        wanted = [
            t.requires_grad_()
            for i, t in enumerate(tensors)
            if isinstance(t, gg.Tensor) and t.is_floating_point() and op.differentiable(i)
        ]
        cotangent = None
        with strict.synchronisations.watch() as waits:
            y = op(*tensors, **params)
            ys = [v for v in (y if isinstance(y, (list, tuple)) else [y]) if v.requires_grad]
            if ys and wanted:
                total = sum((v * v).sum() for v in ys)
                first = gg.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
                again = [g for g in first if g is not None and g.requires_grad]
                if again:
                    total = sum((g * g).sum() for g in again)
                    cotangent = gg.autograd.grad(total, wanted, allow_unused=True)
        assert waits == [], f"{name} with shapes {[np.shape(a) for a in args]}"
        del cotangent


@on_the_stand_in
def test_a_training_step_does_not_wait():
    model = gg.nn.Sequential(gg.nn.Linear(5, 7), gg.nn.Tanh(), gg.nn.Linear(7, 1)).cuda()
    optimizer = gg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = gg.randn(3, 5).cuda(), gg.randn(3, 1).cuda()

    def step():
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    step()
    with strict.synchronisations.watch() as waits:
        loss = step()
    assert waits == []
    with strict.synchronisations.watch() as waits:
        loss.item()
    assert len(waits) == 1


# ------------------------------------------------------------------------------------------------
# it says no


@on_the_stand_in
class TestBrokenRows:
    """Rows that are wrong in the ways that go unnoticed on a CPU."""

    def run(self, eval):
        from gpugrad.ops.core import Opaque

        op = Opaque("broken", eval, (), (), None)
        try:
            return op(gg.tensor([1.0, 2.0, 3.0], device="cuda"))
        finally:
            del REGISTRY["broken"]

    def test_to_the_host_by_accident(self):
        with pytest.raises(TypeError, match="Implicit conversion"):
            self.run(lambda x: np.asarray(x))

    def test_a_host_array_among_the_operands(self):
        with pytest.raises(TypeError, match="Unsupported type"):
            self.run(lambda x: x + np.ones(3, np.float32))

    def test_a_function_cupy_lacks(self):
        with pytest.raises((AttributeError, NotImplementedError)):
            self.run(lambda x: strict.module.maximum.reduce(x))

    def test_memory_that_nobody_wrote(self):
        assert np.isnan(self.run(lambda x: strict.module.empty_like(x)).cpu().array).all()

    def test_a_hidden_wait(self):
        with strict.synchronisations.watch() as waits:
            self.run(lambda x: x if x.sum() > 0 else -x)
        assert waits == ["bool()"]

    def test_positions_out_of_range(self):
        index = strict.module.asarray(np.array([5]))
        with pytest.raises(strict.Undefined, match="out of bounds"):
            self.run(lambda x: x[index])

    def test_repeated_positions(self):
        index = strict.module.asarray(np.array([0, 0]))

        def write(x):
            x[index] = strict.module.asarray(np.array([1.0, 2.0], np.float32))
            return x

        with pytest.raises(strict.Undefined, match="repeated position"):
            self.run(write)

    def test_overlapping_memory(self):
        with pytest.raises(strict.Undefined, match="overlaps"):
            self.run(lambda x: strict.module.add(x[:-1], x[:-1], out=x[1:]))


# ------------------------------------------------------------------------------------------------
# the stand-in against the real CuPy on the host-memory device


def values():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
        "d": rng.normal(size=(3, 4)),
        "h": rng.normal(size=(3, 4)).astype(np.float16),
        "i": np.array([2, 0, 1]),
        "m": rng.normal(size=(3, 4)) > 0,
        "z": np.array(2.0, np.float32),
    }


CONTRACT = """
a + b; a - d; a * 2; 2.0 / a; a ** 2; a @ b; -a; abs(a); a > 0; a == b; h + h; h * 2.5; h + a
i + i; i / 2; i // 2; i % 2; i * 2.5; i + a[:, 0]; m & m; ~m; m + m; z + a; z * 2
a + np.ones(4, np.float32); a + np.float32(2); a + np.float64(2); h + np.float32(2)
a + [1, 2, 3, 4]; a[0]; a[0, 1]; a[:, ::2]; a[i]; a[..., None]; a[m]; a[i[:, None], i]
a[np.array([0, 1])]; a[[0, 1]]; a.T; a.reshape(4, 3); a.reshape(-1); a.ravel()
a.transpose(1, 0); a.sum(); a.sum(axis=0); a.sum(axis=(0, 1)); a.sum(axis=1, keepdims=True)
h.sum(); i.sum(); m.sum(); a.mean(); a.max(axis=1); a.min(); a.argmax(axis=1); a.argmin()
a.cumsum(axis=1); a.any(); a.all(axis=0); a.astype("float64"); a.astype("int32"); a.copy()
a.dot(b); float(z); int(z); bool(z); bool(a); a.item(); z.item(); i.tolist(); np.asarray(a)
len(a); a.shape; a.strides; a.dtype; a.ndim; a.flags.c_contiguous; a.flags.writeable; cp.exp(a)
cp.exp(i); cp.maximum(a, b); cp.maximum(a, 0); cp.where(m, a, b); cp.where(m, 1, 0)
cp.where(m, 1.0, 0.5); cp.where(m); cp.add.reduce(a, axis=0); cp.add.reduce(a, axis=None)
cp.maximum.reduce(a); cp.multiply.reduce(a, axis=1); cp.concatenate([a, a])
cp.stack([a, a], axis=1); cp.concatenate([a, np.ones((1, 4), np.float32)])
cp.broadcast_to(b, (3, 4)); cp.matmul(a, b); cp.einsum("ij,j->i", a, b); cp.zeros(3)
cp.ones((2, 2), "int8"); cp.full((2,), 3.5, "float32"); cp.arange(5); cp.arange(0, 1, 0.25)
cp.zeros_like(a); cp.full_like(i, 2); cp.argsort(i); cp.sort(b); cp.flip(a, 0); cp.roll(a, 1, 0)
cp.tile(b, 2); cp.pad(a, 1); cp.isnan(a); cp.isfinite(a); cp.sign(a); cp.sqrt(cp.abs(a))
cp.log1p(cp.abs(a)); cp.power(a, 2); cp.square(a); cp.logical_and(m, m); cp.logical_not(m)
cp.expand_dims(a, 0); cp.squeeze(a[:1]); cp.moveaxis(a, 0, 1); cp.swapaxes(a, 0, 1)
cp.diagonal(a); cp.tril(a); cp.triu(a); cp.trace(a); cp.outer(b, b); cp.tensordot(a, a, 2)
cp.dot(b, b); cp.prod(a); cp.var(a); cp.std(a); cp.count_nonzero(m); cp.nonzero(m); cp.unique(i)
cp.take(a, i, axis=0); cp.asarray(a); cp.asarray([1.0, 2.0]); cp.array(3); cp.asnumpy(a)
cp.ascontiguousarray(a.T); cp.empty(0); cp.ndarray((0, 3), "float32"); cp.result_type(a, d)
cp.clip(a, 0, 1); cp.minimum(a, b, out=cp.empty_like(a)); cp.add(a, b, cp.empty_like(a))
cp.add(a, b, out=np.empty((3, 4))); cp.rint(a); cp.trunc(a); cp.fmod(a, b); cp.hypot(a, b)
cp.arctan2(a, b); cp.logaddexp(a, b); cp.eye(3); cp.linspace(0, 1, 5); cp.repeat(b, 2)
cp.split(b, 2); cp.add(a, b, where=m); a.sum(where=m); a.sum(initial=1.0); cp.array("x")
cp.zeros(2, object); cp.nonexistent; a.nonexistent
""".replace("\n", ";")
EXPRESSIONS = [e.strip() for e in CONTRACT.split(";") if e.strip()]


def outcome(expression: str, cp) -> tuple:
    """What evaluating gives: kind, dtype, shape and values, or the class of the exception."""
    names = {name: cp.asarray(v) for name, v in values().items()}
    try:
        found = eval(expression, {"cp": cp, "np": np, **names})
    except Exception as error:
        known = (TypeError, ValueError, AttributeError, IndexError, NotImplementedError)
        return ("raises", next((k for k in known if isinstance(error, k)), type(error)))
    return described(found, cp)


def described(found, cp) -> tuple:
    if isinstance(found, (list, tuple)) and not all(isinstance(f, int) for f in found):
        return tuple(described(f, cp) for f in found)
    if isinstance(found, cp.ndarray):
        return ("array", found.dtype, found.shape, found.get())
    if isinstance(found, np.ndarray):
        return ("host array", found.dtype, found.shape, found)
    return ("value", type(found), found)


def same(a, b) -> bool:
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return np.allclose(a, b, 1e-3, 1e-3, equal_nan=True)
    return a == b


@pytest.mark.gpu
@pytest.mark.skipif(strict.active(), reason="compares the stand-in with the real CuPy")
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_stand_in_keeps_the_contract_of_cupy(expression):
    cupy = pytest.importorskip("cupy")
    if host_device.active() and any(w in expression for w in ("sort", "unique", "nonzero")):
        pytest.skip("the host-memory device has no sort or scan of CuPy's")
    found, expected = outcome(expression, strict.module), outcome(expression, cupy)
    assert same(found, expected), f"{expression}: {found}, CuPy: {expected}"


def test_the_stand_in_is_no_module_of_its_own():
    """It is known by CuPy's name, and refuses what neither library has."""
    assert isinstance(strict.module, types.ModuleType) and strict.module.__name__ == "cupy"
    with pytest.raises(AttributeError, match="no attribute"):
        _ = strict.module.no_such_function
