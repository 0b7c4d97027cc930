"""Launches under ThreadSanitizer: races are found with their lines, and nothing else is."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.cuda import shim
from tests.cuda.shim import race
from tests.cuda.shim.race import Launch, Pointer
from tests.cuda.test_shim import SOFTMAX, TREE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(shim.missing()), reason=shim.missing()),
]
x = np.linspace(-1, 1, 512, dtype=np.float32)
out = np.zeros(32, np.float32)


def number(value: int) -> bytes:
    return np.int64(value).tobytes()


def on_array(text: str, blocks: int = 1, threads: int = 32) -> Launch:
    """A kernel ``k(float* a)`` with this body."""
    text = f'extern "C" __global__ void k(float* a) {{\n{text} }}'
    return Launch(text, "k", (blocks,), (threads,), [out], [Pointer(0)])


def tree(barrier: str) -> Launch:
    text = TREE.replace("BARRIER", barrier)
    return Launch(text, "k", (2,), (128,), [x, out], [Pointer(0), Pointer(1), number(256)])


def softmax() -> Launch:
    arguments = [Pointer(0), Pointer(1), number(128)]
    return Launch(SOFTMAX, "k", (2,), (256,), [x, np.zeros_like(x)], arguments, 512)


NEIGHBOUR = """__shared__ float s[32]; s[threadIdx.x] = 1; {0};
  a[threadIdx.x] = s[threadIdx.x ^ 1];"""
LAST_BLOCK = """__shared__ bool last; const int i = threadIdx.x;
  if (!i) { a[1 + blockIdx.x] = 1; __threadfence();
            last = atomicAdd((int*)a, 1) == gridDim.x - 1; }
  __syncthreads();
  if (last && !i) for (int b = 0; b < gridDim.x; ++b) a[20] += a[1 + b];"""
RIGHT = {
    "barrier": lambda: tree("__syncthreads();"),
    "softmax": softmax,
    "atomic sum of blocks": lambda: on_array("atomicAdd(a, 1.f);", blocks=4),
    "__syncwarp orders": lambda: on_array(NEIGHBOUR.format("__syncwarp()")),
    "the last block sees what the others wrote": lambda: on_array(LAST_BLOCK, blocks=4),
    "two arrays in shared memory": lambda: on_array(
        "__shared__ float s[32], t[2][16]; const int i = threadIdx.x; s[i] = 1;"
        "t[i / 16][i % 16] = 2; __syncthreads(); a[i] = s[31 - i] + t[i % 2][i / 2];"
    ),
}
WRONG = {
    "missing barrier": (lambda: tree(""), "data race(.|\n)*kernel.cu:[45]"),
    "blocks race": (lambda: on_array("if (!threadIdx.x) a[0] += 1;", 4, 4), "kernel.cu:2"),
    "threads race": (lambda: on_array("a[threadIdx.x / 2] += 1;"), "kernel.cu:2"),
    "a shuffle orders nothing": (
        lambda: on_array(NEIGHBOUR.format("__shfl_sync(~0u, 1, 0)")),
        "data race(.|\n)*kernel.cu",
    ),
    "divergent barriers": (
        lambda: on_array("if (threadIdx.x < 4) __syncthreads();\nelse __syncthreads();"),
        "different barriers",
    ),
    "barrier after a return": (
        lambda: on_array("if (threadIdx.x < 4) return; __syncthreads();"),
        "threads of the block returned",
    ),
    "dead-lock": (
        lambda: on_array("if (threadIdx.x < 5) __syncwarp(); else __syncthreads();"),
        "dead-lock",
    ),
    "wrong mask": (lambda: on_array("__syncwarp(1);"), "not in its mask"),
}


@pytest.fixture(scope="module")
def reports():
    """Of all launches here, from one process or a few."""
    if not race.available():
        pytest.skip("no ThreadSanitizer")
    launches = {**RIGHT, **{name: make for name, (make, _) in WRONG.items()}}
    return dict(zip(launches, race.check([make() for make in launches.values()])))


@pytest.mark.parametrize("name", RIGHT)
def test_no_report(reports, name):
    assert not reports[name], reports[name]


@pytest.mark.parametrize("name", WRONG)
def test_report(reports, name):
    assert re.search(WRONG[name][1], reports[name]), reports[name]
