"""Native products of matrices against float64: layouts, batches, epilogues, edges."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest

import gpugrad  # noqa: F401 - declares the primitives of expressions
from gpugrad.codegen import blas, gemm, shares
from gpugrad.codegen.arrays import Program
from gpugrad.codegen.expr import build, const, variable
from gpugrad.codegen.functions import functions_for
from gpugrad.codegen.ir import Code
from gpugrad.codegen.machine import Machine, machine
from gpugrad.codegen.tasks import Task, TaskList
from gpugrad.config import settings

pytest.importorskip("llvmlite")

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "float64")
WAYS = ("own", "blas")


@pytest.fixture(autouse=True)
def compiler():
    if os.environ.get("GPUGRAD_JIT") == "0":
        pytest.skip("GPUGRAD_JIT=0")
    assert machine() is not None


def choose(way: str, monkeypatch) -> None:
    """Every product by own kernels, or by NumPy's BLAS."""
    if way == "blas" and blas.find("float") is None:
        pytest.skip("NumPy's BLAS is not found")
    for name in ("LARGE", "MEDIUM"):
        monkeypatch.setattr(gemm, name, 0 if way == "blas" else 1 << 62)


def run(task: Task | None) -> None:
    assert task is not None
    tasks = TaskList()
    tasks.append(task)
    tasks.run()


def matrix(rng, shape, dtype, transposed: bool) -> np.ndarray:
    """Random numbers; transposed: neighbours in a column are neighbours in memory."""
    *batch, m, n = shape
    x = rng.normal(size=(*batch, n, m) if transposed else shape).astype(dtype)
    return x.swapaxes(-1, -2) if transposed else x


def poisoned(shape, dtype) -> np.ndarray:
    return np.full(shape, True if np.dtype(dtype).kind == "b" else np.nan, dtype)


def assert_product(found: np.ndarray, a: np.ndarray, b: np.ndarray, alpha=1.0) -> None:
    """Equal up to the roundings of a sum of k products, of which the worst case is k eps."""
    exact = alpha * (a.astype(np.float64) @ b.astype(np.float64))
    scale = abs(alpha) * (np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)))
    eps = np.finfo(found.dtype).eps
    assert np.all(np.abs(found - exact) <= (a.shape[-1] + 2) * eps * scale)


SIZES = [
    (1, 1, 1), (3, 5, 7), (1, 9, 1), (5, 1, 4), (2, 33, 130), (6, 16, 16), (7, 17, 15),
    (64, 128, 10), (13, 300, 33), (97, 530, 50), (200, 40, 24), (100, 257, 1),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_layouts(sizes, dtype, way, monkeypatch):
    choose(way, monkeypatch)
    m, k, n = sizes
    rng = np.random.default_rng(sum(sizes))
    for turned_a in (False, True):
        for turned_b in (False, True):
            a = matrix(rng, (m, k), dtype, turned_a)
            b = matrix(rng, (k, n), dtype, turned_b)
            out = poisoned((m, n), dtype)
            run(gemm.task(a, b, out, alpha=0.75))
            assert_product(out, a, b, 0.75)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_terms(dtype):
    a, b, out = np.zeros((7, 0), dtype), np.zeros((0, 20), dtype), poisoned((7, 20), dtype)
    run(gemm.task(a, b, out))
    assert not out.any()
    for turned in (a, np.zeros((0, 7), dtype).T):
        out[...] = np.nan
        run(gemm.task(turned, np.zeros((20, 0), dtype).T, out, alpha=np.pi))
        assert not out.any()


@pytest.mark.parametrize("way", WAYS)
def test_parts_of_larger_arrays(way, monkeypatch):
    """Only the elements of the result are written."""
    choose(way, monkeypatch)
    rng = np.random.default_rng(1)
    base = rng.normal(size=(40, 90)).astype(np.float32)
    a, b = base[3:20, 5:34], base[4:33, 40:81]
    out = poisoned((30, 60), np.float32)
    run(gemm.task(a, b, out[2:19, 7:48]))
    assert_product(out[2:19, 7:48], a, b)
    inside = np.zeros(out.shape, bool)
    inside[2:19, 7:48] = True
    assert np.isnan(out[~inside]).all()


def test_other_strides():
    """Of a any; of b and the outputs neighbours must be neighbours."""
    rng = np.random.default_rng(2)
    base = rng.normal(size=(60, 60)).astype(np.float32)
    for a in (base[::2, ::3], base[::-1, 40::-2], base[5:6].repeat(3, 0)):
        b = base[: a.shape[1], ::-1][:, ::-1]
        out = poisoned((a.shape[0], b.shape[1]), np.float32)
        run(gemm.task(a, b, out))
        assert_product(out, a, b)
    column = np.broadcast_to(base[:, :1], (60, 30))  # every element of a row is the same
    out = poisoned((60, 60), np.float32)
    run(gemm.task(column, base[:30], out))
    assert_product(out, column, base[:30])
    assert gemm.task(base, base[:, ::2], np.empty((60, 30), np.float32)) is None
    assert gemm.task(base, base, np.empty((60, 60), np.float32, "F")) is None


BATCHES = [
    ((5,), (5,)), ((5,), ()), ((), (5,)), ((5,), (1,)), ((2, 3), (2, 3)), ((2, 3), (3,)),
    ((2, 1), (3,)), ((1, 1), (1, 1)), ((2, 3), (2, 1)), ((4, 1, 2), (2,)), ((0, 3), (3,)),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batches(batches, way, monkeypatch):
    choose(way, monkeypatch)
    rng = np.random.default_rng(3)
    batch_a, batch_b = batches
    for m, k, n in ((6, 17, 20), (1, 8, 9)):
        for turned_a in (False, True):
            a = matrix(rng, (*batch_a, m, k), "float32", turned_a)
            b = matrix(rng, (*batch_b, k, n), "float32", not turned_a)
            out = poisoned((*np.broadcast_shapes(batch_a, batch_b), m, n), "float32")
            task = gemm.task(a, b, out)
            if not out.size:
                assert task is None
                continue
            run(task)
            assert_product(out, a, b)


def test_heads_of_attention():
    """Two batch dimensions that are no one: views of (batch, length, heads, size)."""
    rng = np.random.default_rng(4)
    q, k, v, out = (rng.normal(size=(3, 11, 4, 8)).astype(np.float32) for _ in range(4))
    q, k, v, out = (x.transpose(0, 2, 1, 3) for x in (q, k, v, out))
    scores = poisoned((3, 4, 11, 11), "float32")
    run(gemm.task(q, k.swapaxes(-1, -2), scores, alpha=8**-0.5))
    assert_product(scores, q, k.swapaxes(-1, -2), 8**-0.5)
    run(gemm.task(scores, v, out))
    assert_product(out, scores, v)
    three = rng.normal(size=(4, 3, 2, 5, 5)).astype(np.float32)
    assert (
        gemm.task(
            three.transpose(2, 1, 0, 3, 4),
            three[0, 0, 0],
            np.empty_like(three).reshape(2, 3, 4, 5, 5),
        )
        is None
    )


# ---- epilogues

x, bias, scale, mask, other, number = map(variable, ("x", "bias", "scale", "mask", "other", "c"))
relu = build("maximum", x + bias, const(0.0))
EPILOGUES = {
    "bias": ([x + bias], ["x", "bias"]),
    "bias, relu and its mask": ([relu, build("gt", relu, const(0.0))], ["x", "bias"]),
    "the product too": ([x, build("tanh", x * scale)], ["x", "scale"]),
    "masked": ([build("where", mask, x, number)], ["x", "mask", "c"]),
    "gelu": ([x * (1 + build("erf", x * 0.7071)) * 0.5], ["x"]),
    # with a branch for angles that are far from zero
    "waves": ([build("sin", x * 1e6 + bias), build("pow", abs(x), scale)], ["x", "bias", "scale"]),
    "several": ([x * scale + other - number, build("exp", -x * x)],
                ["x", "scale", "unused", "other", "c"]),
}  # fmt: skip


def epilogue(name: str) -> Program:
    outputs, inputs = EPILOGUES[name]
    return Program(outputs, inputs, ())


def inputs_of(program: Program, shape, dtype, rng, kinds: dict) -> list:
    """An input of every name: of the kind asked for, else one number per column."""
    *batch, m, n = shape
    shapes = {"row": (n,), "column": (m, 1), "one": (), "batch": (*batch, 1, 1), "full": shape}
    found = []
    for name in program.inputs[1:]:
        if name == "c":
            found.append(0.625)
        else:
            value = np.asarray(rng.normal(size=shapes[kinds.get(name, "row")]), dtype)
            found.append(np.asarray(value > 0) if name == "mask" else value)
    return found


def dtypes_of(program: Program, dtype) -> list:
    return [np.dtype(bool) if e.op == "gt" else np.dtype(dtype) for e in program.outputs]


@pytest.mark.parametrize("kind", ["row", "column", "one", "batch", "full"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name, dtype, kind):
    program = epilogue(name)
    rng = np.random.default_rng(5)
    for shape in ((9, 7), (64, 40), (3, 13, 17), (100, 32), (2, 1, 1)):
        *batch, m, n = shape
        a, b = matrix(rng, (*batch, m, 20), dtype, False), matrix(rng, (20, n), dtype, m > 20)
        kinds = dict.fromkeys(("bias", "scale", "mask", "other", "unused"), kind)
        inputs = inputs_of(program, shape, dtype, rng, kinds)
        outputs = [poisoned(shape, d) for d in dtypes_of(program, dtype)]
        run(gemm.task(a, b, outputs, alpha=0.5, program=program, inputs=inputs))
        product = poisoned(shape, dtype)
        run(gemm.task(a, b, product, alpha=0.5))
        assert_product(product, a, b, 0.5)
        wanted = program.direct(functions_for(np), np.dtype(dtype))(product, *inputs)
        for found, exact in zip(outputs, wanted if len(outputs) > 1 else [wanted], strict=True):
            assert found.dtype == exact.dtype
            eps = float(np.finfo(dtype).eps)
            np.testing.assert_allclose(found, exact, rtol=8 * eps, atol=8 * eps)


def test_an_output_that_is_an_input():
    """out += a @ b, where the elements of an output are read before they are written."""
    rng = np.random.default_rng(6)
    a, b, out = (rng.normal(size=s).astype(np.float32) for s in ((70, 600), (600, 50), (70, 50)))
    before = out.copy()
    program = Program([x + other], ["x", "other"], ())
    run(gemm.task(a, b, out, program=program, inputs=[out]))
    product = poisoned(out.shape, np.float32)
    run(gemm.task(a, b, product))
    np.testing.assert_array_equal(out, product + before)


def test_what_fits_into_no_kernel():
    a, b, out = (np.ones(s, np.float32) for s in ((4, 5), (5, 6), (4, 6)))
    biased = epilogue("bias")
    assert gemm.task(a.astype(np.float16), b.astype(np.float16), out.astype(np.float16)) is None
    assert gemm.task(a.astype(float), b, out) is None
    assert gemm.task(a, b, out.astype(float)) is None
    assert gemm.task(a, b, np.empty((4, 6), bool), program=biased, inputs=[b[0]]) is None
    assert gemm.task(a, b, out, program=biased, inputs=[b[0].astype(float)]) is None
    assert gemm.task(a, b, out, program=biased, inputs=[np.float32(2)]) is None  # no array object
    assert (
        gemm.task(a, b, out, program=biased, inputs=[np.ones((4, 12), np.float32)[:, ::2]]) is None
    )
    square = np.ones((4, 4), np.float32)
    assert gemm.task(square, square.copy(), square) is None  # it would read what it has written
    twice = np.ones((5, 6), np.float32)  # an input that lies a row below the output
    assert (
        gemm.task(
            a, b, twice[:4], program=Program([x + other], ["x", "other"], ()), inputs=[twice[1:]]
        )
        is None
    )
    both = Program([x, -x], ["x"], ())
    assert gemm.task(a, b, [twice[:4], twice[1:]], program=both) is None
    odd = np.zeros(4 * 30 + 1, np.uint8)[1:].view(np.float32)[:24].reshape(4, 6)
    assert gemm.task(a, b, odd) is None
    unknown = Program([build("asin", x)], ["x"], ())
    assert gemm.task(a, b, out, program=unknown) is None
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 6\) has the shape \(4, 5\)"):
        gemm.task(a, b, np.empty((4, 5), np.float32))
    with pytest.raises(ValueError, match="2 inputs and 1 outputs was given 0 inputs"):
        gemm.task(a, b, out, program=biased)


def test_large_products_are_left_to_blas(monkeypatch):
    choose("blas", monkeypatch)
    a, b, out = (np.ones(s, np.float32) for s in ((8, 600), (600, 6), (8, 6)))
    assert gemm.task(a, b, out).table[3] == blas.find("float").address
    biased = epilogue("bias")
    assert gemm.task(a, b, out, program=biased, inputs=[b[0]]) is None
    few = gemm.task(a[:, :20], b[:20], out, program=biased, inputs=[b[0]])
    run(few)
    assert (out == 21).all()
    monkeypatch.setattr(blas, "find", lambda element: None)
    run(gemm.task(a, b, out, program=biased, inputs=[b[0]]))
    assert (out == 601).all()


def test_transposed_matrices_that_lie_far_apart_are_left_to_blas():
    if blas.find("float") is None:
        pytest.skip("NumPy's BLAS is not found")
    a, b, out = (np.ones(s, np.float32) for s in ((256, 512), (256, 64), (512, 64)))
    for left, by_blas in ((a.T, True), (a[:64].T, False), (np.ascontiguousarray(a.T), False)):
        found = gemm.task(left, b[: left.shape[1]], out)
        assert found.calls_blas == by_blas
        run(found)
        assert (out == left.shape[1]).all()


@pytest.fixture
def blas_threads():
    """What gets and sets the threads of OpenBLAS."""
    functions = blas.thread_functions()
    if functions is None:
        pytest.skip("NumPy's BLAS is not OpenBLAS")
    get_threads = ctypes.CFUNCTYPE(ctypes.c_int)(functions[0])
    set_threads = ctypes.CFUNCTYPE(None, ctypes.c_int)(functions[1])
    before = get_threads()
    yield get_threads, set_threads
    set_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_products_of_blas(threads, dtype, blas_threads, monkeypatch):
    """Rows or columns of the result, whatever there are more of; OpenBLAS's own threads rest."""
    choose("blas", monkeypatch)
    monkeypatch.setattr(gemm, "BLAS_SHARE", 10)
    monkeypatch.setattr(settings, "num_threads", threads)
    get_threads, set_threads = blas_threads
    set_threads(3)
    rng = np.random.default_rng(12)
    for shape in ((101, 40, 33), (33, 40, 101), (2, 70, 5, 90)):
        *batch, m, k, n = shape
        for turned in (False, True):
            a, b = matrix(rng, (*batch, m, k), dtype, turned), matrix(rng, (k, n), dtype, turned)
            out = poisoned((*batch, m, n), dtype)
            found = gemm.task(a, b, out)
            assert found.parts > 1
            run(found)
            assert_product(out, a, b)
    assert get_threads() == 3


def asking() -> int:
    """The address of a kernel that writes to its table what the function there returns."""
    code = Code("double", 1)
    parameters = shares.parameters(code)
    table = parameters[0]
    found = code.emit(f"call i32 {code.load(table, 'ptr').name}()", "i32")
    code.store(found.convert("zext", "i64"), code.at(table, 1))
    return machine().load(code.function("kernel", parameters))


def test_blas_has_one_thread_for_the_length_of_a_task(blas_threads):
    get_threads, set_threads = blas_threads
    set_threads(4)
    tasks, seen = TaskList(), []
    for calls_blas in (True, False, True):
        table = array("q", [blas.thread_functions()[0], 0])
        seen.append(table)
        tasks.append(Task(asking(), table, array("d"), calls_blas=calls_blas))
    tasks.run()
    assert [table[1] for table in seen] == [1, 4, 1]
    assert get_threads() == 4
    set_threads(1)
    tasks.run()
    assert [table[1] for table in seen] == [1, 1, 1]
    assert get_threads() == 1


# ---- threads, other CPUs, memory


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads, monkeypatch):
    rng = np.random.default_rng(7)
    monkeypatch.setattr(gemm, "PARALLEL", 1)
    relu_too = epilogue("bias, relu and its mask")
    for shape_a, shape_b in (
        ((130, 700), (700, 90)),
        ((60, 50), (50, 10)),
        ((6, 30, 20), (6, 20, 7)),
    ):
        a, b = (rng.normal(size=s).astype(np.float32) for s in (shape_a, shape_b))
        shape = (*a.shape[:-1], b.shape[-1])
        row = rng.normal(size=shape[-1:]).astype(np.float32)
        results = []
        for number in (1, threads):
            monkeypatch.setattr(settings, "num_threads", number)
            outputs = [poisoned(shape, np.float32), poisoned(shape, bool)]
            task = gemm.task(a, b, outputs, program=relu_too, inputs=[row])
            assert task.parts > 1
            run(task)
            results.append(outputs)
        for one, several in zip(*results, strict=True):
            np.testing.assert_array_equal(one, several)


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("way", WAYS)
def test_shares_make_the_whole(way, shares, monkeypatch):
    """A kernel is called for each share alone, in any order."""
    choose(way, monkeypatch)
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2)
    rng = np.random.default_rng(8)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((3, 50, 20), (3, 20, 40)))
    out = poisoned((3, 50, 40), np.float32)
    task = gemm.task(a, b, out)
    bounds = [(1 << 16) * k // shares for k in range(shares + 1)]
    for k in rng.permutation(shares):
        addresses = (task.table.buffer_info()[0], task.numbers.buffer_info()[0])
        kind(task.function)(*addresses, bounds[k], bounds[k + 1])
    assert_product(out, a, b)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="features of x86")
@pytest.mark.parametrize("features", ["", "+sse4.1", "+avx", "+avx,+avx2", "+avx,+avx2,+fma"])
def test_other_cpus(features, monkeypatch):
    import llvmlite.binding

    host = llvmlite.binding.get_host_cpu_features()
    if not all(host.get(f[1:]) for f in features.split(",") if f):
        pytest.skip(f"this CPU lacks one of {features}")
    other = Machine("x86-64", features)
    monkeypatch.setattr(gemm, "machine", lambda: other)
    monkeypatch.setattr(gemm, "_PLAIN", Program([x], ["x"], ()))
    rng = np.random.default_rng(9)
    for dtype in DTYPES:
        for m, k, n in ((33, 70, 21), (4, 30, 5), (1, 60, 100)):
            for turned in (False, True):
                a, b = matrix(rng, (m, k), dtype, turned), matrix(rng, (k, n), dtype, turned)
                out = poisoned((m, n), dtype)
                run(gemm.task(a, b, out))
                assert_product(out, a, b)


@pytest.mark.parametrize("registers", [16, 32])
def test_every_tile(registers, monkeypatch):
    """Also those that other sizes, or CPUs with more registers, choose."""
    rng = np.random.default_rng(10)
    lanes = machine().lanes("float") // 2
    for shape in gemm._TILES[registers]:
        tile = gemm.Tile("float", lanes, *shape)
        monkeypatch.setattr(gemm, "_choose_tile", lambda *_, tile=tile: tile)
        for m, k, n in ((50, 40, 70), (1, 500, 3), (shape[0], 9, tile.columns)):
            for turned in (False, True):
                a, b = (
                    matrix(rng, (m, k), "float32", turned),
                    matrix(rng, (k, n), "float32", turned),
                )
                out = poisoned((m, n), "float32")
                run(gemm.task(a, b, out))
                assert_product(out, a, b)


def guarded(shape, dtype, at_end: bool) -> np.ndarray:
    """An array that ends where a page begins that must not be touched, or begins where one ends."""
    page = mmap.PAGESIZE
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    size = -(-max(nbytes, 1) // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for place in (address, address + page + size):
        assert protect(place, page, 0) == 0
    start = page + size - nbytes if at_end else page
    return np.frombuffer(memory, dtype, nbytes // np.dtype(dtype).itemsize, start).reshape(shape)


def run_guarded(at_end: bool) -> None:
    rng = np.random.default_rng(11)
    program = epilogue("bias, relu and its mask")
    for _ in range(60):
        m, k, n = (int(v) for v in rng.integers(1, 130, 3))
        dtype = rng.choice(DTYPES)
        turned = rng.random(2) > 0.5
        a, b, row = (guarded(s, dtype, at_end) for s in ((m, k), (k, n), (n,)))
        a, b = (y.reshape(y.shape[::-1]).T if t else y for y, t in zip((a, b), turned, strict=True))
        for y in (a, b, row):
            y[...] = rng.normal(size=y.shape)
        outputs = [guarded((m, n), d, at_end) for d in (dtype, bool)]
        run(gemm.task(a, b, outputs, program=program, inputs=[row]))
        run(gemm.task(a, b, outputs[0]))
        assert_product(outputs[0], a, b)
        if m <= gemm.PROLOGUE_ROWS:
            computed = gemm.Computed(Program([x * bias], ["x", "bias"], ()), [b, row], b.shape)
            run(gemm.task(a, computed, outputs[0]))
            assert_product(outputs[0], a, b * row)
    print("inside")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as on Linux")
@pytest.mark.parametrize("side", ["end", "start"])
def test_nothing_is_touched_outside_of_the_arrays(side):
    ran = subprocess.run([sys.executable, __file__, side], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "inside", ran.stderr


if __name__ == "__main__":
    run_guarded(sys.argv[1] == "end")
