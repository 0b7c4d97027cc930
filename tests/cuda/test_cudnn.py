"""cuDNN: what reaches the library, with a stand-in that computes; and that NVIDIA's library has
engines for the graphs, without a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad.backend import cudnn
from gpugrad.codegen import cuda_attention, cuda_convolution, cudnn_attention, cudnn_convolution
from gpugrad.ops import attention as attention_rows
from gpugrad.ops import convolution
from tests.cuda import fake_cudnn
from tests.cuda.judging import agrees, on_device, rounded, wide

ROOT = Path(__file__).parents[2]


@pytest.fixture
def library(monkeypatch, host_device):
    """The stand-in as the library."""
    monkeypatch.setattr(cudnn, "module", lambda: fake_cudnn)
    monkeypatch.setattr(cudnn, "_plans", {})
    monkeypatch.setattr(cudnn, "_handles", cudnn._Handles())
    fake_cudnn.counts.clear()
    fake_cudnn.declined.clear()
    fake_cudnn.workspaces.clear()
    return fake_cudnn


LAYERS = {
    "plain": ((2, 3, 8, 7), (5, 3, 3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "strided": ((2, 4, 9, 8), (6, 4, 3, 3), (2, 1), ((1, 1), (1, 0)), (1, 2), 1),
    "groups": ((1, 6, 7, 7), (9, 2, 3, 3), (2, 2), ((0, 2), (1, 1)), (1, 1), 3),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 5),
}


def operands(rng, name, dtype="float32"):
    x, w, stride, padding, dilation, groups = LAYERS[name]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    shape = convolution.output_shape(x, w, **options)
    return [rounded(rng.normal(size=s), dtype) for s in (x, w, shape)], options


def run_all(x, w, g, options):
    return [
        cuda_convolution.forward(x, w, **options),
        cuda_convolution.input_gradient(g, w, shape=x.shape, **options),
        cuda_convolution.weight_gradient(g, x, shape=w.shape, **options),
    ]


def channels_last(a):
    import cupy

    return cupy.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_executed(name, layout, dtype, library, rng):
    arrays, options = operands(rng, name, dtype)
    x, w, g = on_device(*arrays)
    if layout == "last":
        x, w, g = (channels_last(a) for a in (x, w, g))
    judged = [wide(a) for a in arrays]
    expected = [
        convolution.forward(judged[0], judged[1], **options),
        convolution.input_gradient(judged[2], judged[1], shape=x.shape, **options),
        convolution.weight_gradient(judged[2], judged[0], shape=w.shape, **options),
    ]
    found = run_all(x, w, g, options)
    assert library.counts["executions"] == 3
    for a, b in zip(found, expected, strict=True):
        agrees(a, b, dtype)
    if layout == "last":
        assert all(a.transpose(0, 2, 3, 1).flags.c_contiguous for a in found[:2])


@pytest.mark.gpu
def test_graphs_are_kept_and_the_stream_follows(library, rng):
    import cupy

    arrays, options = operands(rng, "plain")
    x, w, g = on_device(*arrays)
    for _ in range(3):
        run_all(x, w, g, options)
    assert library.counts == {"handles": 1, "streams": 1, "graphs": 3, "executions": 9}
    assert all(library.workspaces)
    with cupy.cuda.Stream(non_blocking=True):
        run_all(x, w, g, options)
        run_all(x, w, g, options)
    run_all(x, w, g, options)
    assert library.counts["streams"] == 3 and library.counts["graphs"] == 3
    run_all(x[:1].copy(), w, g[:1].copy(), options)
    assert library.counts["graphs"] == 6


@pytest.mark.gpu
def test_arrays_that_engines_could_not_read_are_copied(library, rng):
    import cupy

    (x, w, _), options = operands(rng, "plain")
    odd = cupy.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    odd[...] = cupy.asarray(x)
    gaps = cupy.zeros((*x.shape[:3], 2 * x.shape[3]), x.dtype)[..., ::2]
    gaps[...] = cupy.asarray(x)
    expected = convolution.forward(wide(x), wide(w), **options)
    for image in (odd, gaps):
        agrees(cuda_convolution.forward(image, cupy.asarray(w), **options), expected, "float32")
    assert library.counts["executions"] == 2


@pytest.mark.gpu
def test_what_cudnn_has_no_engine_for(library, rng):
    """The kernels of gpugrad compute, and the library is asked once."""
    library.declined.add("dgrad")
    arrays, options = operands(rng, "strided")
    x, w, g = on_device(*arrays)
    for _ in range(2):
        found = cuda_convolution.input_gradient(g, w, shape=x.shape, **options)
    expected = convolution.input_gradient(
        wide(arrays[2]), wide(arrays[1]), shape=x.shape, **options
    )
    agrees(found, expected, "float32", size=30)
    assert not library.counts["graphs"] and not library.counts["executions"]


@pytest.mark.gpu
def test_who_computes_what_is_not_for_cudnn(library, rng):
    arrays, options = operands(rng, "plain", "float64")
    run_all(*on_device(*arrays), options)
    arrays, options = operands(rng, "plain")
    with gg.backends.cudnn.flags(enabled=False):
        run_all(*on_device(*arrays), options)
    x, w, _ = on_device(*arrays)
    assert cuda_convolution.forward(x[:0], w, **options).shape[0] == 0
    assert not library.counts


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype, flags, forbidden",
    [
        ("float32", {}, {"NONDETERMINISTIC", "TENSOR_CORE", "DOWN_CONVERT_INPUTS"}),
        ("float16", {}, {"NONDETERMINISTIC"}),
        ("float32", {"allow_tf32": True}, {"NONDETERMINISTIC"}),
        ("float16", {"deterministic": False}, set()),
    ],
)
def test_switches(dtype, flags, forbidden, library, rng):
    arrays, options = operands(rng, "plain", dtype)
    with gg.backends.cudnn.flags(**flags):
        run_all(*on_device(*arrays), options)
    for plan in cudnn._plans.values():
        assert {note.name for note in plan.graph.forbidden} == forbidden
    run_all(*on_device(*arrays), options)
    assert library.counts["graphs"] == (6 if flags else 3)


@pytest.mark.gpu
def test_benchmark_times_the_plans_that_can_run(library, rng):
    arrays, options = operands(rng, "plain")
    x, w, _ = on_device(*arrays)
    with gg.backends.cudnn.flags(benchmark=True):
        for _ in range(2):
            found = cuda_convolution.forward(x, w, **options)
    assert sorted(library.counts[f"plan {i}"] for i in (1, 2)) == [4, 6]
    agrees(found, convolution.forward(wide(arrays[0]), wide(arrays[1]), **options), "float32")


@pytest.mark.gpu
def test_training_step(library, rng):
    x = rng.normal(size=(2, 3, 8, 8)).astype("float32")
    w = rng.normal(size=(4, 3, 3, 3)).astype("float32")
    gradients = {}
    for device in ("cpu", "cuda"):
        X, W = (gg.tensor(v, device=device, requires_grad=True) for v in (x, w))
        F.relu(F.conv2d(X, W, padding=1)).square().sum().backward()
        gradients[device] = [X.grad.cpu().numpy(), W.grad.cpu().numpy()]
    assert library.counts["executions"] == 3
    for a, b in zip(*gradients.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_no_hidden_traffic(library, no_hidden_traffic, rng):
    arrays, options = operands(rng, "strided")
    x, w, g = on_device(*arrays)
    run_all(x, w, g, options)
    with no_hidden_traffic("sync", "h2d", "d2h"):
        run_all(x, w, g, options)


# ---- attention

# leading dimensions, queries, keys, numbers of a key and of a value
HEADS = {
    "square": ((2, 3), 33, 33, 16, 16),
    "more keys": ((1, 2), 5, 40, 40, 24),
    "fewer keys": ((2, 1), 40, 7, 8, 128),
    "one query": ((1, 2), 1, 40, 64, 64),
    "one key": ((3,), 9, 1, 16, 16),
    "one head": ((), 12, 12, 8, 8),
}
HOW = {"scale": 0.3, "causal": False}


def attention_operands(rng, name, dtype="float16"):
    """q, k, v and a cotangent."""
    lead, queries, keys, head, value = HEADS[name]
    shapes = (queries, head), (keys, head), (keys, value), (queries, value)
    return [rounded(rng.normal(size=(*lead, *shape)), dtype) for shape in shapes]


def attention_expected(arrays, how=HOW):
    q, k, v, g = (wide(a) for a in arrays)
    out = attention_rows._attention(q, k, v, **how)
    return [out, *attention_rows._attention_vjp((True,) * 3, g, out, q, k, v, **how)]


def attention_all(q, k, v, g, how=HOW):
    out = cuda_attention.attention(q, k, v, **how)
    return [out, *cuda_attention.attention_vjp((True,) * 3, g, out, q, k, v, **how)]


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", HEADS)
def test_attention(name, dtype, causal, library, rng):
    arrays, how = attention_operands(rng, name, dtype), {"scale": 0.3, "causal": causal}
    found = attention_all(*on_device(*arrays), how)
    assert library.counts["graphs"] == library.counts["executions"] == 2
    for a, b in zip(found, attention_expected(arrays, how), strict=True):
        agrees(a, b, dtype)


def attention_layouts(a):
    """Arrays of the same values: what a library reads in place, and what is copied for it."""
    import cupy

    lead, (length, size) = a.shape[:-2], a.shape[-2:]
    a = cupy.asarray(a)
    wider = cupy.zeros((*lead, length, size + 8), a.dtype)
    longer = cupy.zeros((*lead, 2 * length, size), a.dtype)
    odd = cupy.zeros(a.size + 1, a.dtype)[1:].reshape(a.shape)
    part, every = wider[..., 8:], longer[..., ::2, :]
    for view in (part, every, odd):
        view[...] = a
    split = cupy.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)
    columns = cupy.ascontiguousarray(a.swapaxes(2, 3)).swapaxes(2, 3)
    backwards = cupy.ascontiguousarray(a[..., ::-1, :])[..., ::-1, :]
    gaps = cupy.ascontiguousarray(cupy.repeat(a, 2, -1))[..., ::2]
    return {"in place": (a, part, every, split), "copied": (odd, columns, backwards, gaps)}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["in place", "copied"])
def test_attention_layouts(kind, library, rng):
    arrays = attention_operands(rng, "square")
    expected = attention_expected(arrays)
    layouts = [attention_layouts(a)[kind] for a in arrays]
    for i, operands in enumerate(zip(*layouts, strict=True)):
        found = attention_all(*operands)
        assert library.counts["executions"] == 2 * (i + 1)
        for a, b in zip(found, expected, strict=True):
            agrees(a, b, "float16")
    for array in layouts[0]:
        assert (cudnn_attention._readable(array) is array) == (kind == "in place")
    if kind == "in place":  # the last: heads that were split off
        assert all(a.swapaxes(1, 2).flags.c_contiguous for a in found)


@pytest.mark.gpu
def test_attention_of_rows_that_are_shown_many_times(library, rng):
    import cupy

    q, k, v, g = attention_operands(rng, "square")
    on = [cupy.broadcast_to(cupy.asarray(a[:, :1]), a.shape) for a in (k, v, g)]
    arrays = [q, *(a.get() for a in on)]
    found = attention_all(cupy.asarray(q), *on)
    assert library.counts["executions"] == 2
    for a, b in zip(found, attention_expected(arrays), strict=True):
        agrees(a, b, "float16")


@pytest.mark.gpu
@pytest.mark.parametrize("declined", ["sdpa", "sdpa_backward"])
def test_attention_half_by_cudnn(declined, library, rng):
    """Kernels read the sums that cuDNN wrote, and cuDNN those of the kernels."""
    library.declined.add(declined)
    arrays = attention_operands(rng, "square")
    found = attention_all(*on_device(*arrays))
    assert library.counts["executions"] == 1
    for a, b in zip(found, attention_expected(arrays), strict=True):
        agrees(a, b, "float16")


@pytest.mark.gpu
def test_attention_without_the_sums_and_of_what_is_needed(library, rng):
    q, k, v, g = on_device(*(arrays := attention_operands(rng, "more keys")))
    out = cuda_attention.attention(q, k, v, **HOW).copy()  # sums belong to the first
    needs = (False, True, False)
    dq, dk, dv = cuda_attention.attention_vjp(needs, g, out, q, k, v, **HOW)
    assert dq is None and dv is None and library.counts["executions"] == 3
    agrees(dk, attention_expected(arrays)[2], "float16")


@pytest.mark.gpu
def test_attention_of_one_query_and_one_key(library, rng):
    """cuDNN has no gradient for it; there are kernels."""
    arrays = [a[..., :1, :] for a in attention_operands(rng, "square")]
    found = attention_all(*on_device(*(np.ascontiguousarray(a) for a in arrays)))
    assert library.counts["executions"] == 1
    for a, b in zip(found, attention_expected(arrays), strict=True):
        agrees(a, b, "float16")


@pytest.mark.gpu
def test_attention_that_is_not_for_cudnn(library, monkeypatch, rng):
    import cupy

    arrays = on_device(*attention_operands(rng, "square"))
    q, k, v, g = arrays
    with gg.backends.cudnn.flags(enabled=False):
        attention_all(*arrays)
    attention_all(*(a.astype("float32") for a in arrays))
    attention_all(q[..., :12].copy(), k[..., :12].copy(), v, g)
    cuda_attention.attention(q, k, v, cupy.ones((33, 33), bool), **HOW)
    cuda_attention.attention(q, k, v, cupy.ones((33, 33), q.dtype), **HOW)
    monkeypatch.setattr(library, "backend_version", lambda: 91500)
    attention_all(*arrays)
    assert not library.counts


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [True, False])
def test_attention_switches(deterministic, library, rng):
    """float32 among the inputs of the gradient, the sums, does not forbid tensor cores."""
    arrays = on_device(*attention_operands(rng, "square"))
    with gg.backends.cudnn.flags(deterministic=deterministic):
        attention_all(*arrays)
    forward, backward = (plan.graph for plan in cudnn._plans.values())
    for graph in (forward, backward):
        assert [note.name for note in graph.forbidden] == ["NONDETERMINISTIC"] * deterministic
    assert backward.deterministic is deterministic


@pytest.mark.gpu
def test_attention_in_training(library, no_hidden_traffic, rng):
    q, k, v, g = (gg.tensor(a, device="cuda") for a in attention_operands(rng, "square"))
    for a in (q, k, v):
        a.requires_grad_()

    def step():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.backward(g)
        return out

    step()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        step()
    assert library.counts["graphs"] == 2 and library.counts["executions"] == 4


# ---- switches


def test_switches_are_booleans():
    module = gg.backends.cudnn
    with pytest.raises(TypeError, match="True or False"):
        module.enabled = 1
    assert (module.enabled, module.benchmark) == (True, False)
    assert module.is_available() in (True, False)
    with module.flags(benchmark=True, deterministic=False):
        assert module.benchmark and not module.deterministic
    assert not module.benchmark and module.deterministic


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(cudnn, "module", lambda: None)
    assert not cudnn.usable() and gg.backends.cudnn.version() is None
    x = np.ones((1, 1, 2, 2), "float32")
    assert cudnn_convolution.forward(x, x, (1, 1), ((0, 0), (0, 0)), (1, 1), 1) is None


# ---- NVIDIA's own library, to which a device is described

# An H100 as cuDNN describes devices to itself; fields found by what it asks for.
H100 = {
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "oversizedSharedMemoryPerBlock": 232448, "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "pciDeviceId": 1, "isTccDriver": 0, "supportCoopLaunch": 1,
    "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "memoryBusWidth": 5120,
    "l2CacheSize": 52428800, "deviceName": "NVIDIA H100 80GB HBM3", "cudaDeviceId": 0,
    "deviceVer": 900, "driverVer": 13000, "totalGlobalMem": 85000000000,
}  # fmt: skip

PLANS = """
import json, sys
import cudnn, numpy as np
from gpugrad.backend import cudnn as backend, cupy
from gpugrad.codegen import cudnn_convolution as convolution

described = cudnn.create_device_properties(sys.argv[1])
found = []

class Array(np.ndarray):  # a CuPy array, as far as descriptions of graphs look
    class data:
        ptr = 0

def array(shape, dtype, last):
    n, c, h, w = shape
    a = np.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2) if last else np.empty(shape, dtype)
    return a.view(Array)

def run(key, make, arrays):
    graph = backend.build(make, device_property=described)
    graph.build_plans()
    (y,) = graph.get_outputs()
    found.append([graph.get_execution_plan_count(), y.get_dim(), y.get_stride(),
                  graph.get_plan_name_at_index(0)])
    return True

backend.run, cupy.empty = run, lambda shape, dtype: np.empty(shape, dtype).view(Array)
backend.data_type.__globals__["module"] = lambda: cudnn
for x, w, y, *options in json.loads(sys.argv[2]):
    options = [tuple(map(tuple, o)) if isinstance(o[0], list) else tuple(o) for o in options[:3]]
    options += [x[1] // w[1]]
    for dtype in ("float16", "float32"):
        for last in (False, True):
            X, W, Y = (array(s, dtype, last) for s in (x, w, y))
            convolution.forward(X, W, *options)
            convolution.input_gradient(Y, W, tuple(x), *options)
            convolution.weight_gradient(Y, X, tuple(w), *options)
print(json.dumps(found))
"""


# Engines that are compiled load what they compiled when a plan is built.
LOADS = {"cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction"}


def driver_function(name: str) -> str:
    """C++ of a function of the driver that there is not: no device, but kernels may be loaded."""
    if name in LOADS:
        return f'extern "C" int {name}(void** out) {{ *out = out; return 0; }}\n'
    return f'extern "C" int {name}() {{ return {0 if name.startswith("cuKernel") else 100}; }}\n'


@pytest.fixture(scope="module")
def without_driver(tmp_path_factory):
    """An environment in which libcudnn loads without NVIDIA's driver: all it calls fails."""
    folder = pytest.importorskip("nvidia.cudnn", reason="libcudnn: pip install gpugrad[cudnn]")
    pytest.importorskip("cudnn", reason="pip install gpugrad[cudnn]")
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    libraries = Path(next(iter(folder.__path__))) / "lib"
    stub = tmp_path_factory.mktemp("driver")
    needed = ["cuGetErrorString", "cuInit", "cuDriverGetVersion", "cuGetProcAddress"]
    for library in libraries.glob("*.so.*"):
        listed = subprocess.run(["nm", "-D", "-u", library], capture_output=True, text=True)
        names = [line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()]
        needed += [n for n in names if n.startswith("cu") and n[2].isupper()]
        if "graph" in library.name or "engines" in library.name:  # looked up while they run
            words = re.findall(rb"\bcu[A-Z]\w{2,60}(?=\0)", library.read_bytes())
            needed += [word.decode() for word in words]
    (stub / "driver.cpp").write_text("".join(map(driver_function, sorted({*needed}))))
    make = ["g++", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", stub / "libcuda.so.1"]
    subprocess.run([*make, stub / "driver.cpp"], check=True)
    import nvidia

    toolkit = [str(lib) for root in nvidia.__path__ for lib in Path(root).glob("*/lib")]
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join([str(stub), str(libraries), *toolkit]),
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
@pytest.mark.skipif(gg.cuda.is_available(), reason="there is a device; it is asked itself")
def test_nvidias_library_has_engines(without_driver):
    """For every layer, dtype and layout above: plans exist, shapes and strides are ours."""
    layers = []
    for x, w, stride, padding, dilation, groups in LAYERS.values():
        y = convolution.output_shape(
            x, w, stride=stride, padding=padding, dilation=dilation, groups=groups
        )
        layers.append([x, w, y, stride, padding, dilation])
    ran = subprocess.run(
        [sys.executable, "-c", PLANS, json.dumps(H100), json.dumps(layers)],
        capture_output=True, text=True, env=without_driver, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = iter(json.loads(ran.stdout.splitlines()[-1]))
    for x, w, y, *_ in layers:
        for shape in (y, x, w) * 4:
            plans, dims, _, _ = next(found)
            assert plans > 0
            assert tuple(dims) == tuple(shape)


ATTENTION_PLANS = """
import json, sys
import cudnn, numpy as np
from gpugrad.backend import cudnn as backend, cupy
from gpugrad.codegen import cudnn_attention as attention

found = []
where = {"device_property": cudnn.create_device_properties(sys.argv[1]), "sm_version": 90}
half = np.dtype("float16")

class Array(np.ndarray):  # a CuPy array, as far as descriptions of graphs look
    class data:
        ptr = 0

def array(*shape, dtype=half, split=False):
    b, h, n, d = shape
    a = np.empty((b, n, h, d), dtype).transpose(0, 2, 1, 3) if split else np.empty(shape, dtype)
    return a.view(Array)

def run(key, make, arrays):
    graph = backend.build(make, **where)
    try:
        graph.check_support()
        graph.build_plans()
        found.append([graph.get_execution_plan_count(), graph.get_workspace_size()])
    except cudnn.cudnnGraphNotSupportedError as error:
        found.append([0, str(error)])
    return True

backend.run, cupy.empty = run, lambda shape, dtype: np.empty(shape, dtype).view(Array)
backend.data_type.__globals__["module"] = lambda: cudnn
for lead, queries, keys, head, value in json.loads(sys.argv[2]):
    lead = [1] * (2 - len(lead)) + lead
    sums = array(*lead, queries, 1, dtype=np.dtype("float32"))
    for split, causal in ((False, False), (True, True)):
        q, k, v = (array(*lead, *s, split=split) for s in
                   ((queries, head), (keys, head), (keys, value)))
        g = array(*lead, queries, value, split=split)
        how = {"scale": 0.3, "causal": causal}
        attention.forward(q, k, v, sums, **how)
        for backend.switches.deterministic in (False, True):
            attention.backward(g, g, sums, q, k, v, **how)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(gg.cuda.is_available(), reason="there is a device; it is asked itself")
def test_nvidias_library_has_engines_for_attention(without_driver):
    """It builds plans for all heads above, and for some as they are in use, in both layouts
    and causal or not, with gradients that are deterministic or need not be."""
    heads = [*HEADS.values(), ((2, 12), 1024, 1024, 64, 64), ((1, 8), 500, 500, 128, 128)]
    ran = subprocess.run(
        [sys.executable, "-c", ATTENTION_PLANS, json.dumps(H100), json.dumps(heads)],
        capture_output=True, text=True, env=without_driver, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) == len(heads) * 2 * 3
    assert all(plans > 0 for plans, _ in found), [f for f in found if not f[0]]
