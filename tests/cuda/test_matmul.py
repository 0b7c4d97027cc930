"""Products of matrices on CUDA: layouts and dtypes against float64 NumPy, epilogues, capture."""

from __future__ import annotations

import time

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.backend import cublas, epilogues
from gpugrad.errors import KernelError

pytestmark = pytest.mark.gpu

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "complex64": 1e-4}
DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def dtype_of(name):
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype(name)


def random(rng, shape, name="float64"):
    values = rng.standard_normal(shape)
    if name.startswith("complex"):
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype_of(name))


def wide(x):
    return x.astype("complex128" if x.dtype.kind == "c" else "float64")


def close(got, want, name="float64"):
    tolerance = TOLERANCE.get(name, 1e-11)
    got = wide(got.get() if hasattr(got, "get") else np.asarray(got))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * 10)


# ---- values


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(
    "m, k, n", [(1, 1, 1), (31, 33, 1), (1, 257, 33), (33, 1000, 31), (64, 8, 9)]
)
def test_every_layout(cupy, rng, name, m, k, n):
    for columns_a in (False, True):
        for columns_b in (False, True):
            a, b = random(rng, (m, k), name), random(rng, (k, n), name)
            on_device = [
                cupy.asarray(x.T.copy()).T if columns else cupy.asarray(x)
                for x, columns in ((a, columns_a), (b, columns_b))
            ]
            got = cublas.matmul(*on_device)
            assert got.dtype == a.dtype
            close(got, wide(a) @ wide(b), name)


@pytest.mark.parametrize(
    "a, b",
    [
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (6, 3, 4)),
        ((7, 1, 9, 11), (1, 5, 11, 2)),
        ((2, 50, 1, 3, 3), (2, 1, 40, 3, 3)),
        ((3,), (3,)),
        ((2, 3), (3,)),
        ((3,), (3, 4)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 4)),
        ((1, 1, 3), (3, 1)),
        ((0, 3), (3, 4)),
        ((2, 0), (0, 4)),
        ((0,), (0,)),
        ((4, 0, 3), (4, 3, 2)),
        ((4, 2, 0), (0, 3)),
    ],
)
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_vectors_batches_and_empty(cupy, rng, name, a, b):
    a, b = random(rng, a, name), random(rng, b, name)
    close(cublas.matmul(cupy.asarray(a), cupy.asarray(b)), np.matmul(wide(a), wide(b)), name)


VIEWS = [
    lambda x: x[:, 3:19],
    lambda x: x[::2],
    lambda x: x[:, ::2],
    lambda x: x[::-1],
    lambda x: x[1:, 1:],
    lambda x: x.T[5:, 1:],
    lambda x: x[:1].repeat(40, 0)[:, :1],
    lambda x: x[:, 7],
]


@pytest.mark.parametrize("view", range(len(VIEWS)))
@pytest.mark.parametrize("name", ["float16", "float64"])
def test_views(cupy, rng, name, view):
    whole = random(rng, (40, 40), name)
    for make in (VIEWS[view], lambda x: x):
        a, b = VIEWS[view](whole), np.swapaxes(make(whole), 0, -1)
        k = a.shape[-1]
        b = b[:k] if b.shape[0] >= k else whole[:k]
        on_device = cupy.asarray(whole)
        left = VIEWS[view](on_device)
        right = cupy.swapaxes(make(on_device), 0, -1)
        right = right[:k] if right.shape[0] >= k else on_device[:k]
        close(cublas.matmul(left, right), wide(a) @ wide(b), name)


def test_broadcast_and_permuted_batches(cupy, rng):
    x = random(rng, (3, 5, 8, 6))
    on_device = cupy.asarray(x)
    for permutation in [(0, 1, 2, 3), (1, 0, 2, 3), (2, 0, 1, 3), (3, 1, 0, 2), (0, 2, 3, 1)]:
        left, host = on_device.transpose(permutation), x.transpose(permutation)
        close(cublas.matmul(left, left.swapaxes(-1, -2)), host @ host.swapaxes(-1, -2))
    row = cupy.broadcast_to(cupy.asarray(x[0, 0]), (4, 8, 6))
    close(cublas.matmul(row, row.swapaxes(1, 2)), np.stack([x[0, 0] @ x[0, 0].T] * 4))
    flat = cupy.broadcast_to(cupy.asarray(x[0, 0, 0]), (9, 6))  # rows that overlap
    close(cublas.matmul(flat, cupy.asarray(x[0, 0].T)), np.stack([x[0, 0, 0] @ x[0, 0].T] * 9))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("lead", [(), (1,), (31,), (3, 7), (2, 0, 3)])
def test_products_of_a_layer(cupy, rng, name, lead):
    x, w, g = (
        random(rng, (*lead, 33), name),
        random(rng, (9, 33), name),
        random(rng, (*lead, 9), name),
    )
    b = random(rng, (9,), name)
    xd, wd, gd, bd = (cupy.asarray(v) for v in (x, w, g, b))
    close(cublas.linear(xd, wd), wide(x) @ wide(w).T, name)
    close(cublas.linear_input(gd, wd), wide(g) @ wide(w), name)
    rows_g, rows_x = wide(g).reshape(-1, 9), wide(x).reshape(-1, 33)
    close(cublas.linear_weight(gd, xd), rows_g.T @ rows_x, name)
    close(epilogues.affine(xd, wd, bd), wide(x) @ wide(w).T + wide(b), name)
    part = cupy.concatenate([bd[:1], bd])[1:]  # less aligned than an epilogue wants
    close(epilogues.affine(xd, wd, part), wide(x) @ wide(w).T + wide(b), name)


def test_accumulates_in_place(cupy, rng):
    a, b, c = (random(rng, s) for s in ((4, 5, 6), (4, 6, 7), (4, 5, 7)))
    ad, bd, cd = (cupy.asarray(v) for v in (a, b, c))
    assert cublas.accumulate(ad, bd, cd, alpha=-0.5, beta=2.0)
    close(cd, -0.5 * (a @ b) + 2 * c)
    cd.fill(np.nan)
    assert cublas.accumulate(ad, bd, cd, beta=0)  # what was there is not read
    close(cd, a @ b)
    part = cupy.zeros((4 * 5 * 7 + 1,))[1:].reshape(4, 5, 7)  # 8 bytes off any alignment
    assert cublas.accumulate(ad, bd, part)
    close(part, a @ b)
    assert not cublas.accumulate(ad, bd, cd[:, :, ::-1])


def test_sums_of_halves_are_float32(cupy):
    """4096 + 1 is no float16; partial sums must not be rounded to one."""
    a = cupy.ones((1, 8192), np.float16)
    b = cupy.ones((8192, 1), np.float16)
    assert float(cublas.matmul(a, b)[0, 0]) == 8192


def test_integers_are_left_to_cupy(cupy):
    a = cupy.arange(6).reshape(2, 3)
    assert cublas.matmul(a, a.T) is None
    x = gg.arange(6, device="cuda").reshape(2, 3)
    assert (x @ x.T).tolist() == [[5, 14], [14, 50]]


# ---- tensors


CALLS = {
    "matmul": (lambda a, b: a @ b, (5, 7), (7, 3)),
    "batched": (lambda a, b: a @ b, (4, 5, 7), (4, 7, 3)),
    "broadcast": (lambda a, b: a @ b, (4, 1, 5, 7), (6, 7, 3)),
    "vector": (lambda a, b: a @ b, (4, 5, 7), (7,)),
    "transposed": (lambda a, b: a.T @ b.T, (7, 5), (3, 7)),
    "tensordot": (lambda a, b: gg.tensordot(a, b, ([0, 2], [1, 0])), (4, 5, 7), (7, 4, 3)),
    "einsum_rows": (lambda a, b: gg.einsum("ij,jk->ki", a, b), (5, 7), (7, 3)),
    "einsum_batch": (lambda a, b: gg.einsum("bihd,bjhd->bhij", a, b), (2, 5, 3, 4), (2, 6, 3, 4)),
    "einsum_trace": (lambda a, b: gg.einsum("bij,bji->b", a, b), (3, 4, 5), (3, 5, 4)),
    "einsum_outer": (lambda a, b: gg.einsum("i,j->ji", a, b), (3,), (4,)),
    "einsum_scalar": (lambda a, b: gg.einsum("ij,ij->", a, b), (3, 4), (3, 4)),
    "einsum_alone": (lambda a, b: gg.einsum("ij,k->ik", a, b), (3, 4), (5,)),
    "linear": (lambda a, b: gg.nn.functional.linear(a, b), (4, 5, 7), (3, 7)),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_as_on_the_cpu(rng, name):
    call, *shapes = CALLS[name]
    arrays = [random(rng, s) for s in shapes]
    results = []
    for device in ("cpu", "cuda"):
        inputs = [gg.tensor(a, device=device, requires_grad=True) for a in arrays]
        out = call(*inputs)
        grads = gg.autograd.grad((out * out).sum(), inputs, create_graph=True)
        second = gg.autograd.grad(sum((g * g).sum() for g in grads), inputs)
        results.append([v.detach().cpu().numpy() for v in (out, *grads, *second)])
    for got, want in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "wanted", [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 1), (0, 1, 0)]
)
def test_affine_gradients_as_on_the_cpu(rng, wanted):
    arrays = [random(rng, s) for s in ((4, 33, 7), (9, 7), (9,))]
    results = []
    for device in ("cpu", "cuda"):
        inputs = [
            gg.tensor(a, device=device, requires_grad=bool(w))
            for a, w in zip(arrays, wanted, strict=True)
        ]
        out = gg.nn.functional.linear(*inputs)
        (out * out).sum().backward()
        results.append(
            [out.detach().cpu().numpy()] + [v.grad.cpu().numpy() for v in inputs if v.requires_grad]
        )
    for got, want in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


# ---- epilogues


def tanh_gelu(z):
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def activation(name, z):
    return np.maximum(z, 0) if name == "relu" else tanh_gelu(z)


def slope(name, z, step=1e-6):
    if name == "relu":
        return (z > 0).astype("d")
    return (tanh_gelu(z + step) - tanh_gelu(z - step)) / (2 * step)


EPILOGUE_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-8}


@pytest.fixture(params=["in one call", "in steps"])
def in_one(request, monkeypatch):
    """Both ways of an epilogue: cuBLASLt's, and the product with functions after it."""
    if request.param == "in steps":
        found = cublas._find
        monkeypatch.setattr(
            cublas, "_find", lambda kind, *rest: None if "+" in kind else found(kind, *rest)
        )
    return request.param == "in one call"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["relu", "gelu"])
@pytest.mark.parametrize(
    "rows, inner, columns", [(1, 1, 1), (31, 33, 130), (8, 257, 24), (6, 4, 128)]
)
def test_activations(cupy, rng, in_one, name, kind, rows, inner, columns):
    tolerance = EPILOGUE_TOLERANCE[name]
    x, w, b = (
        random(rng, s, name) * dtype_of(name).type(0.3)
        for s in ((rows, inner), (columns, inner), (columns,))
    )
    g, v = random(rng, (rows, 5), name), random(rng, (5, columns), name)
    xd, wd, bd, gd, vd = (cupy.asarray(a) for a in (x, w, b, g, v))
    z = wide(x) @ wide(w).T + wide(b)
    out, nothing = epilogues.activated(xd, wd, bd, kind, save=False)
    assert nothing is None
    np.testing.assert_allclose(wide(out.get()), activation(kind, z), rtol=tolerance, atol=tolerance)
    out, saved = epilogues.activated(xd, wd, bd, kind)
    np.testing.assert_allclose(wide(out.get()), activation(kind, z), rtol=tolerance, atol=tolerance)
    if kind == "relu":  # the sign of a rounded zero decides, so take the device's
        z = wide(out.get())
    elif saved.packed is not None:
        assert saved.packed.shape[1] % 8 == 0
        np.testing.assert_allclose(wide(saved.values.get()), z, rtol=tolerance, atol=tolerance)
    want = wide(g) @ wide(v) * slope(kind, z)
    for bias in (True, False):
        dz, db = epilogues.activated_input(gd, vd, saved, bias)
        np.testing.assert_allclose(wide(dz.get()), want, rtol=tolerance, atol=tolerance * 10)
        if bias:
            np.testing.assert_allclose(
                wide(db.get()), want.sum(0), rtol=tolerance, atol=tolerance * 100
            )
        else:
            assert db is None


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rows", [1, 33, 1000])
def test_gradients_of_weight_and_bias(cupy, rng, name, rows):
    g, x = random(rng, (rows, 9), name), random(rng, (rows, 33), name)
    found = epilogues.weight_and_bias(cupy.asarray(g), cupy.asarray(x))
    if found is None:
        pytest.skip(f"this cuBLASLt has no BGRADB for {name}")
    tolerance = EPILOGUE_TOLERANCE[name]
    np.testing.assert_allclose(
        wide(found[0].get()), wide(g).T @ wide(x), rtol=tolerance, atol=tolerance * 10
    )
    np.testing.assert_allclose(
        wide(found[1].get()), wide(g).sum(0), rtol=tolerance, atol=tolerance * 10
    )


def test_epilogues_that_are_not_supported_run_in_steps(cupy, rng, host_device, monkeypatch):
    library = cublas._library()
    monkeypatch.setattr(cublas, "_plans", {})
    library.host_cublaslt_refuse(0xFFFFFFFE)
    try:
        x, w, b = (cupy.asarray(random(rng, s)) for s in ((4, 5), (6, 5), (6,)))
        close(epilogues.affine(x, w, b), (x @ w.T + b).get())
        assert epilogues.weight_and_bias(x, x) is None
        out, saved = epilogues.activated(x, w, b, "gelu")
        assert saved.packed is None
        close(
            gg.nn.functional.linear(*map(gg.as_tensor, (x, w, b))).numpy(force=True),
            (x @ w.T + b).get(),
        )
        dz, _ = epilogues.activated_input(out, cupy.eye(6), saved)
        assert dz.shape == (4, 6)
    finally:
        library.host_cublaslt_refuse(0)


def test_unknown_activation(cupy):
    x = cupy.ones((2, 2))
    with pytest.raises(ValueError, match="tanh"):
        epilogues.activated(x, x, x[0], "tanh")


# ---- precision


def test_tf32_only_when_asked(cupy):
    """1 + 2**-12 has more bits than TF32 keeps."""
    a = cupy.full((64, 64), 1 + 2.0**-12, np.float32)
    b = cupy.eye(64, dtype=np.float32)
    assert gg.get_float32_matmul_precision() == "highest"
    assert float(cublas.matmul(a, b)[0, 0]) == 1 + 2.0**-12
    capable = int(cupy.cuda.Device().compute_capability) >= 80
    try:
        for precision, allowed in (("high", True), ("medium", True), ("highest", False)):
            gg.set_float32_matmul_precision(precision)
            assert gg.get_float32_matmul_precision() == precision
            assert gg.backends.cuda.matmul.allow_tf32 is allowed
            rounded = float(cublas.matmul(a, b)[0, 0]) == 1
            assert rounded == (allowed and capable)
        gg.backends.cuda.matmul.allow_tf32 = True
        assert gg.get_float32_matmul_precision() == "high"
        with pytest.raises(RuntimeError, match="highest"):
            gg.set_float32_matmul_precision("best")
    finally:
        gg.set_float32_matmul_precision("highest")


# ---- streams, capture, threads


def test_capture_and_replay(cupy, rng):
    a, b = random(rng, (33, 300), "float32"), random(rng, (300, 31), "float32")
    ad, bd = cupy.asarray(a), cupy.asarray(b)
    left, right = (
        cupy.asarray(a[:8].reshape(2, 4, 300)),
        cupy.asarray(b[:, :8].T.reshape(2, 4, 300).copy()),
    )
    weight, bias = (
        cupy.asarray(random(rng, (5, 300), "float32")),
        cupy.asarray(random(rng, (5,), "float32")),
    )
    stream = cupy.cuda.Stream(non_blocking=True)

    def work():
        x = gg.as_tensor(ad).requires_grad_(False)
        w, c = (
            gg.as_tensor(weight).detach().requires_grad_(),
            gg.as_tensor(bias).detach().requires_grad_(),
        )
        out = gg.nn.functional.linear(x, w, c)
        gw, gc = gg.autograd.grad(out.sum(), [w, c])
        scores = gg.einsum("bid,bjd->bij", gg.as_tensor(left), gg.as_tensor(right))
        return [
            (gg.as_tensor(ad) @ gg.as_tensor(bd)).array,
            out.detach().array,
            gw.array,
            gc.array,
            scores.array,
        ]

    with stream:
        for _ in range(2):
            work()
        stream.synchronize()
        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            results = work()
            graph = stream.end_capture()
        for k in range(3):
            scaled = (a * (k + 1)).astype("f")
            ad.set(scaled)
            for r in results:
                r.fill(np.nan)
            graph.launch(stream)
            stream.synchronize()
            w, c = wide(weight.get()), wide(bias.get())
            close(results[0], wide(scaled) @ wide(b), "float32")
            close(results[1], wide(scaled) @ w.T + c, "float32")
            np.testing.assert_allclose(
                results[2].get(), np.tile(wide(scaled).sum(0), (5, 1)), rtol=1e-3, atol=1e-2
            )
            close(results[3], np.full(5, 33.0), "float32")
            close(results[4], wide(left.get()) @ wide(right.get()).swapaxes(1, 2), "float32")


def test_steady_calls_allocate_nothing_but_results(cupy, no_hidden_traffic):
    a = cupy.ones((40, 400), np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        kept = [cublas.matmul(a, a.T) for _ in range(3)]
        stream.synchronize()
        del kept
        with no_hidden_traffic():
            cublas.matmul(a, a.T)


def test_streams_have_workspaces_of_their_own(cupy):
    a = cupy.ones((4, 4096), np.float32)
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream in streams:
        with stream:
            cublas.matmul(a, a.T)
            address = cublas._workspace(0, stream.ptr)
            assert address % 256 == 0 and address == cublas._workspace(0, stream.ptr)
        stream.synchronize()
    first, second = (cublas._workspace(0, s.ptr) for s in streams)
    assert first != second


def test_arrays_of_another_device(cupy, rng):
    if gg.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    x, w, b = random(rng, (4, 300)), random(rng, (3, 300)), random(rng, (3,))
    with cupy.cuda.Device(1):
        xd, wd, bd = (cupy.asarray(v) for v in (x, w, b))
    before = cupy.cuda.runtime.getDevice()
    results = [cublas.linear(xd, wd), epilogues.affine(xd, wd, bd)]
    results += epilogues.weight_and_bias(xd, xd)
    assert cupy.cuda.runtime.getDevice() == before == 0
    assert all(r.device.id == 1 for r in results)
    for got, want in zip(results, (x @ w.T, x @ w.T + b, x.T @ x, x.sum(0)), strict=True):
        close(got, want)


def test_a_workspace_outlives_the_pool_it_was_first_needed_in(cupy):
    a = cupy.ones((4, 4096), np.float32)
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.Stream(non_blocking=True) as stream, cupy.cuda.using_allocator(pool.malloc):
        out = cublas.matmul(a, a.T)
        stream.synchronize()
        assert pool.used_bytes() == -(-out.nbytes // 512) * 512


def test_threads_share_handle_and_plans(cupy, rng, in_threads):
    x, w = random(rng, (16, 24)), random(rng, (8, 24))
    bias = [np.full(8, float(k)) for k in range(4)]
    want = x @ w.T
    xd, wd = cupy.asarray(x), cupy.asarray(w)

    def work(k):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            b = cupy.asarray(bias[k])
            for _ in range(50):
                got = epilogues.affine(xd, wd, b)
                stream.synchronize()
                np.testing.assert_allclose(got.get(), want + k, rtol=1e-12)

    epilogues.affine(xd, wd, cupy.asarray(bias[0]))
    cupy.cuda.Device().synchronize()
    in_threads(work)


def test_host_cost_of_a_call(cupy, capsys):
    """Printed, not asserted: the machine decides."""
    a = cupy.ones((4, 4), np.float32)
    cublas.matmul(a, a)
    n, start = 2000, time.thread_time()
    for _ in range(n):
        cublas.matmul(a, a)
    ours = (time.thread_time() - start) / n * 1e6
    with capsys.disabled():
        print(f" [cublas.matmul of 4x4: {ours:.1f} us of host time]", end="")


# ---- wrong use and failures


def test_shapes_that_do_not_fit(cupy):
    a = cupy.ones((2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 3\)"):
        cublas.matmul(a, a)
    with pytest.raises(ValueError, match="broadcast"):
        cublas.matmul(cupy.ones((2, 3, 4)), cupy.ones((5, 4, 3)))
    with pytest.raises(ValueError, match="do not fit"):
        cublas.linear(a, cupy.ones((4, 4)))
    with pytest.raises(RuntimeError, match="2x3 and 2x3"):
        gg.ones(2, 3, device="cuda") @ gg.ones(2, 3, device="cuda")


def test_status_names():
    assert cublas.status_name(7) == "CUBLAS_STATUS_INVALID_VALUE (7)"
    assert "unknown" in cublas.status_name(99)


@pytest.fixture
def anew(monkeypatch):
    """cuBLASLt as if nothing had been asked of it."""
    for name, empty in (("_plans", {}), ("_handles", {}), ("_reported", set())):
        monkeypatch.setattr(cublas, name, empty)
    cublas._library.cache_clear()
    yield
    cublas._library.cache_clear()


def test_a_missing_library_is_reported_once(cupy, monkeypatch, anew):
    monkeypatch.setenv("GPUGRAD_CUBLASLT", "/nowhere/libcublasLt.so")
    a = gg.ones(2, 3, device="cuda")
    with pytest.warns(UserWarning, match="GPUGRAD_CUBLASLT"):
        assert (a @ a.T).tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert (gg.nn.functional.linear(a, a)).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_what_has_no_algorithm_is_reported_once_for_each_dtype(cupy, anew, host_device):
    library = cublas._library()
    library.host_cublaslt_refuse(1)
    try:
        a = gg.ones(2, 3, device="cuda")
        with pytest.warns(UserWarning, match=r"no algorithm for \(2, 3\) @ \(3, 2\) in float32"):
            assert (a @ a.T).tolist() == [[3.0, 3.0], [3.0, 3.0]]
        assert (a.T @ a).shape == (3, 3)
    finally:
        library.host_cublaslt_refuse(0)


def test_without_kernels_cupy_computes(cupy, monkeypatch):
    monkeypatch.setattr(gg.config.settings, "cuda_kernels", False)
    a = cupy.ones((2, 3))
    assert cublas.matmul(a, a.T) is None and epilogues.affine(a, a, a[:, 0].copy()) is None
    assert epilogues.weight_and_bias(a, a) is None
    x = gg.as_tensor(a)
    assert (x @ x.T).tolist() == [[3.0, 3.0], [3.0, 3.0]]


# Each is a mistake in the code above the library; the stand-in or the values must show it.
MISTAKES = {
    "transposition": ("_matrix", lambda r, c, sr, sc: (False, c)),
    "leading dimension": ("_matrix", lambda r, c, sr, sc: (False, max(c - 1, 1))),
    "workspace": ("_workspace", lambda device, stream: None),
    "workspace alignment": (
        "_workspace",
        lambda device, stream: cublas_workspace(device, stream) + 16,
    ),
    "batch stride": ("_merged", lambda shape, strides: (int(np.prod(shape)), strides[-1])),
    "alpha": ("scalar", lambda value, scale: cublas_scalar(0, scale)),
}
cublas_workspace, cublas_scalar = cublas._workspace, cublas.scalar


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(cupy, rng, host_device, monkeypatch, mistake):
    name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(cublas, "_plans", {})
    monkeypatch.setattr(cublas, name, wrong)
    with pytest.raises((KernelError, AssertionError)):
        x = random(rng, (40, 300))
        close(cublas.matmul(cupy.asarray(x)[:4], cupy.asarray(x)[:5].T), x[:4] @ x[:5].T)
        y = random(rng, (3, 4, 5))
        close(
            cublas.matmul(cupy.asarray(y).swapaxes(0, 1), cupy.asarray(y[0].T)),
            y.swapaxes(0, 1) @ y[0].T,
        )


def test_alignment_is_told(cupy, rng, host_device, monkeypatch):
    whole = cupy.asarray(random(rng, (101,)))
    a = whole[1:].reshape(10, 10)
    close(cublas.matmul(a, a), a.get() @ a.get())
    monkeypatch.setattr(cublas, "_plans", {})
    monkeypatch.setattr(
        cublas.Plan,
        "prepare",
        lambda self, d, n, alignment, m, f=cublas.Plan.prepare: f(self, d, n, 256, m),
    )
    with pytest.raises(KernelError, match=r"INVALID_VALUE.*\(10, 10\) @ \(10, 10\) in float64"):
        cublas.matmul(a, a)


def test_auxiliary_rows_are_padded(cupy, host_device, monkeypatch):
    monkeypatch.setattr(cublas, "_plans", {})
    unpadded = epilogues._planner(cublas._plan_linear, "gelu_aux_bias", 1)
    monkeypatch.setitem(epilogues._FORWARD, "gelu_aux_bias", unpadded)
    x = cupy.ones((3, 5))
    with pytest.raises(KernelError, match="gelu_aux_bias"):
        epilogues.activated(x, x, x[0, :3].copy(), "gelu")
