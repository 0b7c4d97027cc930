"""Convolutions with an elementwise program of their results, against the kernels without one: the
sums are the same, so that the results have the same bits."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from gpugrad.codegen import calls
from gpugrad.codegen import convolution as native
from gpugrad.codegen.arrays import Program
from gpugrad.codegen.convolution_epilogues import PLAIN, describe
from gpugrad.codegen.expr import build, evaluate, variable
from gpugrad.codegen.machine import machine
from gpugrad.codegen.tasks import TaskList
from tests.codegen import test_convolution as layers

pytest.importorskip("llvmlite")
every_call, registers = layers.every_call, layers.registers

Y, A, B, M, N = map(variable, ("y", "a", "b", "m", "n"))
# Inputs beside the result are named in this order; each program reads some of them.
INPUTS = ["y", "a", "b", "m", "n"]
PROGRAMS = {
    "bias and relu": [build("maximum", build("add", Y, A), 0.0)],
    "its mask": [build("where", build("gt", B, 0.0), Y, 0.0)],
    "affine, residual": [build("add", build("mul", build("sub", Y, A), N), B), build("neg", Y)],
    "masks": [build("where", M, Y, A), build("gt", Y, B), build("positive", Y)],
    "a function": [build("tanh", build("mul", Y, N))],
}


def operands(rng, shape, dtype) -> list:
    """One array or number for each input: an array of the shape, broadcast in any dimensions."""

    def array() -> np.ndarray:
        broadcast = rng.random(len(shape)) < 0.4
        own = tuple(1 if b else n for n, b in zip(shape, broadcast, strict=True))
        drop = int(rng.integers(0, 1 + next((k for k, n in enumerate(own) if n > 1), 4)))
        a = rng.standard_normal(own[drop:]).astype(dtype)
        if own[drop:] and rng.random() < 0.2:  # rows that do not follow each other
            a = np.repeat(a, 2, axis=0)[::2]
        return a

    return [array(), array(), array() > 0, 0.75]


def task_of(make, source, weights, layer, program, inputs, outputs, parts):
    epilogue = describe(program, inputs, outputs)
    kernel = native.with_epilogue(make, layer, epilogue)
    if kernel is None:
        return None
    given = dict(zip(program.inputs[1:], inputs, strict=True))
    read = [given[name] for name, _ in epilogue.arrays]
    scratch = [np.full(kernel.scratch, np.nan, source.dtype) for _ in range(parts)]
    arrays, batch = [source, weights, *read, *outputs], len(source)
    words = [*map(id, arrays), parts, *map(id, scratch), batch, batch]
    numbers = [given[name] for name in epilogue.numbers]
    signature = "p" * len(arrays) + "S" + "d" * len(numbers) + "fl"
    address = ctypes.cast(kernel.function, ctypes.c_void_p).value
    keep = (arrays, scratch)
    return calls.task(machine(), address, signature, words, numbers, parts=parts, keep=keep)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("seed", range(6))
def test_programs_of_random_layers(registers, seed, name):
    rng = np.random.default_rng(seed)
    case = layers.Case(rng)
    options = list(case.options.values())
    layer = native.native_layer(case.x.dtype, case.x.shape, case.w.shape, *options)
    w = case.w
    ordered = w
    if native.kernels.input_gradient_weights(layer).packed:
        by_group = w.reshape(layer.groups, layer.width, *w.shape[1:])
        ordered = np.ascontiguousarray(by_group.transpose(0, 2, 3, 1, 4))
    forward, _, gradient = case.results(native, case.g, case.x, w)
    program = Program(PROGRAMS[name], INPUTS, ["y"])
    for make, source, weights, result in (
        (native._forward_kernel, case.x, w, forward),
        (native._input_kernel, case.g, ordered, gradient),
    ):
        inputs = operands(rng, result.shape, result.dtype)
        expected = program_of_arrays(program, result, inputs)
        outputs = [np.empty(e.shape, e.dtype) for e in expected]
        for out in outputs:
            out.view(np.uint8)[...] = 0xA5
        task = task_of(make, source, weights, layer, program, inputs, outputs, len(source))
        tasks = TaskList()
        tasks.append(task)
        tasks.run()
        for out, wanted in zip(outputs, expected, strict=True):
            if name == "a function":
                rounding = 8 * np.finfo(out.dtype).eps
                np.testing.assert_allclose(out, wanted, rtol=rounding, err_msg=str(case))
            else:
                np.testing.assert_array_equal(out, wanted, err_msg=str(case))


NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "gt": np.greater,
    "maximum": np.maximum, "where": np.where, "positive": np.positive, "tanh": np.tanh,
}  # fmt: skip


def program_of_arrays(program, result, inputs) -> list[np.ndarray]:
    """By NumPy, in the dtype of the result."""

    def compute(op: str, *args):
        return NUMPY[op](*[result.dtype.type(a) if a.__class__ is float else a for a in args])

    env = dict(zip(program.inputs, [result, *inputs], strict=True))
    return evaluate(program.outputs, env, compute)


def test_what_has_no_kernel():
    out = np.zeros((2, 3, 4, 5), np.float32)
    program = Program([build("add", Y, A)], ["y", "a"], ["y"])
    assert describe(program, [np.zeros((3, 1, 1), np.float32)], [out]) is not None
    assert describe(program, [out], [out]) is None  # it may be computed twice
    assert describe(program, [np.zeros(out.shape)], [out]) is None  # another dtype
    assert describe(program, [np.zeros((2, 3, 4, 10), np.float32)[..., ::2]], [out]) is None
    assert describe(program, [np.zeros(5, np.float32)], [out[:, :2]]) is None  # not contiguous
    long = Y
    for _ in range(600):
        long = build("add", build("mul", long, A), Y)
    options = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    layer = native.native_layer(np.dtype("float32"), (2, 3, 6, 7), (3, 3, 3, 3), *options)
    for make in (native._forward_kernel, native._input_kernel):
        epilogue = describe(Program([long], ["y", "a"], ["y"]), [1.0], [out])
        assert native.with_epilogue(make, layer, epilogue) is None
    assert describe(PLAIN.program, [], [out]) == PLAIN
