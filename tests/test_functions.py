"""Every exported function against torch: values, dtypes, shapes, gradients, special values, errors.

One table of calls. Each is made in float64 with gradients, in the other dtypes without, and, where
the tensor has a method of the name, as a method.
"""

import inspect

import numpy as np
import pytest

import gpugrad as gg

R = np.random.default_rng(0)


def real(*shape):
    return R.standard_normal(shape)


def positive(*shape):
    return R.uniform(0.3, 2.0, shape)


def unit(*shape):
    return R.uniform(-0.9, 0.9, shape)


def distinct(*shape):
    return R.permutation(int(np.prod(shape))).reshape(shape) * 0.37 - 2.0


def ints(low, high, *shape):
    return R.integers(low, high, shape)


def bools(*shape):
    return R.random(shape) > 0.5


X, Y, ROW, COLUMN, SCALAR = real(2, 3), real(2, 3), real(3), real(2, 1), real()
CUBE, P, U, D = real(2, 3, 4), positive(2, 3), unit(2, 3), distinct(2, 5)
MASK, IDS, EMPTY = bools(2, 3), ints(0, 3, 2, 4), real(0, 3)
ZEROS = np.where(MASK, 0.0, X)
TIES = np.array([[1.0, 3.0, 3.0], [3.0, 0.0, -1.0]])

# name: calls, each (function of the library and the arguments, arguments ...)
CASES = {
    "abs": [(lambda t, x: t.abs(x), X), (lambda t, x: t.abs(x), EMPTY)],
    "absolute": [(lambda t, x: t.absolute(x), X)],
    "acos": [(lambda t, x: t.acos(x), U)],
    "acosh": [(lambda t, x: t.acosh(x), P + 1)],
    "add": [
        (lambda t, x, y: t.add(x, y), X, Y),
        (lambda t, x, y: t.add(x, y), X, ROW),
        (lambda t, x, y: t.add(x, y), COLUMN, ROW),
        (lambda t, x, y: t.add(x, y, alpha=-2.5), X, Y),
        (lambda t, x: t.add(x, 2, alpha=3), X),
        (lambda t, x, y: t.add(x, y), X, SCALAR),
    ],
    "addcdiv": [
        (lambda t, x, y, z: t.addcdiv(x, y, z), X, Y, P),
        (lambda t, x, y, z: t.addcdiv(x, y, z, value=0.5), X, ROW, P),
    ],
    "addcmul": [
        (lambda t, x, y, z: t.addcmul(x, y, z), X, Y, P),
        (lambda t, x, y, z: t.addcmul(x, y, z, value=-2), X, ROW, COLUMN),
    ],
    "addmm": [
        (lambda t, b, x, y: t.addmm(b, x, y), ROW, X, real(3, 3)),
        (lambda t, b, x, y: t.addmm(b, x, y, beta=0.5, alpha=2), real(2, 4), X, real(3, 4)),
    ],
    "all": [
        (lambda t, x: t.all(x), MASK),
        (lambda t, x: t.all(x, 1), MASK),
        (lambda t, x: t.all(x, 0, True), MASK),
        (lambda t, x: t.all(x, 0), np.zeros((0, 3), bool)),
    ],
    "allclose": [
        (lambda t, x: t.allclose(x, x), X),
        (lambda t, x: t.allclose(x, x + 1e-7), X),
        (lambda t, x: t.allclose(x, x * np.nan, equal_nan=True), X),
    ],
    "amax": [
        (lambda t, x: t.amax(x), X),
        (lambda t, x: t.amax(x, 1), TIES),
        (lambda t, x: t.amax(x, (0, 1)), TIES),
        (lambda t, x: t.amax(x, (0, 2), True), CUBE),
        (lambda t, x: t.amax(x), SCALAR),
    ],
    "amin": [(lambda t, x: t.amin(x, -1), TIES), (lambda t, x: t.amin(x, 1, True), CUBE)],
    "any": [
        (lambda t, x: t.any(x), MASK),
        (lambda t, x: t.any(x, 1), MASK),
        (lambda t, x: t.any(x, 0, True), MASK),
    ],
    "arccos": [(lambda t, x: t.arccos(x), U)],
    "arcsin": [(lambda t, x: t.arcsin(x), U)],
    "arctan": [(lambda t, x: t.arctan(x), X)],
    "arctan2": [(lambda t, x, y: t.arctan2(x, y), X, Y)],
    "argmax": [
        (lambda t, x: t.argmax(x), D),
        (lambda t, x: t.argmax(x, 1), D),
        (lambda t, x: t.argmax(x, 0, True), D),
        (lambda t, x: t.argmax(x, keepdim=True), D),
        (lambda t, x: t.argmax(x, 1), TIES),
        (lambda t, x: t.argmax(x), SCALAR),
        (lambda t, x: t.argmax(x, 0), SCALAR),
    ],
    "argmin": [(lambda t, x: t.argmin(x), D), (lambda t, x: t.argmin(x, -1, True), D)],
    "argsort": [
        (lambda t, x: t.argsort(x), D),
        (lambda t, x: t.argsort(x, 0, True), D),
        (lambda t, x: t.argsort(x), SCALAR),
        (lambda t, x: t.argsort(x, stable=True), TIES),
        (lambda t, x: t.argsort(x, dim=1, descending=True, stable=True), TIES),
    ],
    "asin": [(lambda t, x: t.asin(x), U)],
    "asinh": [(lambda t, x: t.asinh(x), X)],
    "atan": [(lambda t, x: t.atan(x), X)],
    "atan2": [(lambda t, x, y: t.atan2(x, y), X, Y), (lambda t, x, y: t.atan2(x, y), X, ROW)],
    "atanh": [(lambda t, x: t.atanh(x), U)],
    "bincount": [
        (lambda t, x: t.bincount(x), IDS[0]),
        (lambda t, x: t.bincount(x, minlength=7), IDS[0]),
        (lambda t, x, w: t.bincount(x, w), IDS[0], real(4)),
        (lambda t, x: t.bincount(x), ints(0, 3, 0)),
    ],
    "bmm": [(lambda t, x, y: t.bmm(x, y), CUBE, real(2, 4, 5))],
    "broadcast_tensors": [(lambda t, x, y: t.broadcast_tensors(x, y), COLUMN, ROW)],
    "broadcast_to": [
        (lambda t, x: t.broadcast_to(x, (4, 2, 3)), X),
        (lambda t, x: t.broadcast_to(x, (2, 3)), SCALAR),
    ],
    "cat": [
        (lambda t, x, y: t.cat([x, y]), X, Y),
        (lambda t, x, y: t.cat((x, y, x), 1), X, real(2, 1)),
        (lambda t, x, y: t.cat([x, y], dim=-1), X, ints(0, 5, 2, 2)),
        (lambda t, x, y: t.cat([x, y]), X, EMPTY),
        (lambda t, x, y: t.cat([x, y]), real(0), X),
        (lambda t, x: t.cat([x]), X),
    ],
    "ceil": [(lambda t, x: t.ceil(x), X * 3)],
    "chunk": [
        (lambda t, x: t.chunk(x, 2), real(5, 2)),
        (lambda t, x: t.chunk(x, 4, 0), real(5, 2)),
        (lambda t, x: t.chunk(x, 3, -1), real(2, 7)),
        (lambda t, x: t.chunk(x, 9), real(4)),
        (lambda t, x: t.chunk(x, 3), EMPTY),
    ],
    "clamp": [
        (lambda t, x: t.clamp(x, -0.5, 0.5), X),
        (lambda t, x: t.clamp(x, min=0.1), X),
        (lambda t, x: t.clamp(x, max=0.1), X),
        (lambda t, x: t.clamp(x, 0.0, 3.0), TIES),
        (lambda t, x: t.clamp(x, 1.0, -1.0), X),
        (lambda t, x, lo: t.clamp(x, lo), X, ROW),
        (lambda t, x, lo, hi: t.clamp(x, lo, hi), X, ROW, P),
        (lambda t, x: t.clamp(x, 1, 3), ints(0, 5, 4)),
        (lambda t, x: t.clamp(x, 1.5), ints(0, 5, 4)),
    ],
    "clip": [(lambda t, x: t.clip(x, -0.5, 0.5), X)],
    "clone": [(lambda t, x: t.clone(x), X)],
    "concat": [(lambda t, x, y: t.concat([x, y]), X, Y)],
    "concatenate": [(lambda t, x, y: t.concatenate([x, y], 1), X, Y)],
    "cos": [(lambda t, x: t.cos(x), X)],
    "cosh": [(lambda t, x: t.cosh(x), X)],
    "count_nonzero": [
        (lambda t, x: t.count_nonzero(x), ZEROS),
        (lambda t, x: t.count_nonzero(x, 1), ZEROS),
        (lambda t, x: t.count_nonzero(x, (0, 1)), MASK),
    ],
    "cumsum": [
        (lambda t, x: t.cumsum(x, 0), X),
        (lambda t, x: t.cumsum(x, -1), CUBE),
        (lambda t, x: t.cumsum(x, 0), SCALAR),
        (lambda t, x: t.cumsum(x, 0, dtype=t.float32), IDS),
        (lambda t, x: t.cumsum(x, 1), MASK),
        (lambda t, x: t.cumsum(x, 0), ints(0, 100, 9).astype(np.uint8)),
    ],
    "detach": [(lambda t, x: t.detach(x * 2), X)],
    "diag": [
        (lambda t, x: t.diag(x), real(3, 3)),
        (lambda t, x: t.diag(x, 1), real(3, 4)),
        (lambda t, x: t.diag(x, -1), real(3, 4)),
        (lambda t, x: t.diag(x), ROW),
        (lambda t, x: t.diag(x, -2), ROW),
    ],
    "diagonal": [
        (lambda t, x: t.diagonal(x), CUBE),
        (lambda t, x: t.diagonal(x, 1, -2, -1), CUBE),
        (lambda t, x: t.diagonal(x, offset=-1, dim1=2, dim2=0), CUBE),
    ],
    "div": [
        (lambda t, x, y: t.div(x, y), X, P),
        (lambda t, x, y: t.div(x, y, rounding_mode="floor"), X, P * 0.3),
        (lambda t, x, y: t.div(x, y, rounding_mode="trunc"), X, P * 0.3),
        (lambda t, x: t.div(x, 3), IDS),
        (lambda t, x: t.div(x, 3, rounding_mode="trunc"), ints(-9, 9, 8)),
        (lambda t, x: t.div(x, -3, rounding_mode="floor"), ints(-9, 9, 8)),
    ],
    "divide": [(lambda t, x: t.divide(x, 4.0), X)],
    "dot": [(lambda t, x, y: t.dot(x, y), ROW, real(3))],
    "einsum": [
        (lambda t, x, y: t.einsum("bij,bjk->bik", x, y), CUBE, real(2, 4, 5)),
        (lambda t, x, y: t.einsum("ij,j", x, y), X, ROW),
        (lambda t, x: t.einsum("ii->i", x), real(3, 3)),
        (lambda t, x: t.einsum("ii", x), real(3, 3)),
        (lambda t, x: t.einsum("ijk->kji", x), CUBE),
        (lambda t, x: t.einsum("ijk->j", x), CUBE),
        (lambda t, x, y: t.einsum("i,j->ij", x, y), ROW, real(4)),
        (lambda t, x, y, z: t.einsum("ij,jk,kl->il", x, y, z), X, real(3, 4), real(4, 2)),
        (lambda t, x, y: t.einsum("ij,ij->", x, y), X, Y),
        (lambda t, x, y: t.einsum("ba,ba", x, y), X, Y),
        (lambda t, x: t.einsum("ba", x), X),
        (lambda t, x, y: t.einsum("bii,j->bij", x, y), real(2, 3, 3), real(4)),
        (lambda t, x, y: t.einsum("ij,k->i", x, y), X, ROW),
        (lambda t, x, y: t.einsum("ij,jk->ik", [x, y]), X, real(3, 2)),
    ],
    "eq": [(lambda t, x, y: t.eq(x, y), IDS, ints(0, 3, 4)), (lambda t, x: t.eq(x, 3.0), TIES)],
    "equal": [
        (lambda t, x: t.equal(x, x), X),
        (lambda t, x, y: t.equal(x, y), X, Y),
        (lambda t, x, y: t.equal(x, y), X, ROW),
    ],
    "erf": [(lambda t, x: t.erf(x), X * 2)],
    "exp": [(lambda t, x: t.exp(x), X), (lambda t, x: t.exp(x), SCALAR)],
    "exp2": [(lambda t, x: t.exp2(x), X)],
    "expm1": [(lambda t, x: t.expm1(x), X)],
    "fix": [(lambda t, x: t.fix(x), X * 3)],
    "flatten": [
        (lambda t, x: t.flatten(x), CUBE),
        (lambda t, x: t.flatten(x, 1), CUBE),
        (lambda t, x: t.flatten(x, 0, -2), CUBE),
        (lambda t, x: t.flatten(x), SCALAR),
        (lambda t, x: t.flatten(x, start_dim=1), real(2, 0, 3)),
    ],
    "flip": [
        (lambda t, x: t.flip(x, (0,)), CUBE),
        (lambda t, x: t.flip(x, (0, -1)), CUBE),
        (lambda t, x: t.flip(x, dims=[1]), CUBE),
    ],
    "floor": [(lambda t, x: t.floor(x), X * 3)],
    "floor_divide": [
        (lambda t, x, y: t.floor_divide(x, y), X * 5, Y),
        (lambda t, x, y: t.floor_divide(x, y), ints(-9, 9, 4), np.array([1, -2, 3, -7])),
        (lambda t, x: t.floor_divide(x, 0.3), X),
    ],
    "fmod": [
        (lambda t, x, y: t.fmod(x, y), X * 5, Y),
        (lambda t, x: t.fmod(x, -3), ints(-9, 9, 9)),
    ],
    "gather": [
        (lambda t, x, i: t.gather(x, 1, i), X, IDS),
        (lambda t, x, i: t.gather(x, 0, i), X, ints(0, 2, 5, 3)),
        (lambda t, x, i: t.gather(x, -1, i), X, ints(0, 3, 1, 2)),
        (lambda t, x, i: t.gather(x, 2, i), CUBE, ints(0, 4, 2, 2, 6)),
        (lambda t, x, i: t.gather(x, 0, i), X, ints(0, 2, 0, 3)),
        (lambda t, x, i: t.gather(x, 0, i), SCALAR, np.array(0)),
    ],
    "ge": [(lambda t, x, y: t.ge(x, y), TIES, ROW)],
    "greater": [(lambda t, x, y: t.greater(x, y), TIES, ROW)],
    "greater_equal": [(lambda t, x: t.greater_equal(x, 3), TIES)],
    "gt": [(lambda t, x: t.gt(x, 3), TIES)],
    "hypot": [(lambda t, x, y: t.hypot(x, y), X, Y)],
    "index_add": [
        (lambda t, x, i, s: t.index_add(x, 0, i, s), X, ints(0, 2, 4), real(4, 3)),
        (lambda t, x, i, s: t.index_add(x, 1, i, s, alpha=2), X, ints(0, 3, 5), real(2, 5)),
    ],
    "index_select": [
        (lambda t, x, i: t.index_select(x, 0, i), X, ints(0, 2, 5)),
        (lambda t, x, i: t.index_select(x, -1, i), CUBE, ints(0, 4, 3)),
        (lambda t, x, i: t.index_select(x, 0, i), X, np.array(1)),
    ],
    "isclose": [
        (lambda t, x: t.isclose(x, x + 1e-6), X),
        (lambda t, x, y: t.isclose(x, y, rtol=0.5), X, ROW),
    ],
    "isfinite": [(lambda t, x: t.isfinite(x), X)],
    "isinf": [(lambda t, x: t.isinf(x), IDS)],
    "isnan": [(lambda t, x: t.isnan(x), IDS)],
    "le": [(lambda t, x, y: t.le(x, y), TIES, ROW)],
    "lerp": [
        (lambda t, x, y: t.lerp(x, y, 0.3), X, Y),
        (lambda t, x, y: t.lerp(x, y, 0.8), X, Y),
        (lambda t, x, y, w: t.lerp(x, y, w), X, Y, U),
        (lambda t, x, y, w: t.lerp(x, y, w), X, ROW, COLUMN),
    ],
    "less": [(lambda t, x, y: t.less(x, y), TIES, ROW)],
    "less_equal": [(lambda t, x: t.less_equal(x, 3), TIES)],
    "log": [(lambda t, x: t.log(x), P)],
    "log10": [(lambda t, x: t.log10(x), P)],
    "log1p": [(lambda t, x: t.log1p(x), P)],
    "log2": [(lambda t, x: t.log2(x), P)],
    "log_softmax": [
        (lambda t, x: t.log_softmax(x, 1), X),
        (lambda t, x: t.log_softmax(x, -2), CUBE * 50),
        (lambda t, x: t.log_softmax(x, 0), SCALAR),
        (lambda t, x: t.log_softmax(x, 0, dtype=t.float64), X.astype(np.float32)),
    ],
    "logaddexp": [(lambda t, x, y: t.logaddexp(x, y), X * 100, Y)],
    "logical_and": [(lambda t, x, y: t.logical_and(x, y), ZEROS, MASK)],
    "logical_not": [(lambda t, x: t.logical_not(x), ZEROS), (lambda t, x: t.logical_not(x), IDS)],
    "logical_or": [(lambda t, x, y: t.logical_or(x, y), ZEROS, MASK)],
    "logical_xor": [(lambda t, x, y: t.logical_xor(x, y), ZEROS, MASK)],
    "logsumexp": [
        (lambda t, x: t.logsumexp(x, 1), X * 100),
        (lambda t, x: t.logsumexp(x, (0, 2), True), CUBE),
        (lambda t, x: t.logsumexp(x, 0), SCALAR),
        (lambda t, x: t.logsumexp(x, 0), IDS),
    ],
    "lt": [(lambda t, x, y: t.lt(x, y), TIES, ROW)],
    "masked_fill": [
        (lambda t, x, m: t.masked_fill(x, m, 7.0), X, MASK),
        (lambda t, x, m: t.masked_fill(x, m, -1), X, bools(3)),
        (lambda t, x, m, v: t.masked_fill(x, m, v), X, MASK, SCALAR),
        (lambda t, x, m: t.masked_fill(x, m, 9), IDS, bools(2, 4)),
    ],
    "masked_select": [
        (lambda t, x, m: t.masked_select(x, m), X, MASK),
        (lambda t, x, m: t.masked_select(x, m), X, bools(3)),
        (lambda t, x, m: t.masked_select(x, m), ROW, MASK),
    ],
    "matmul": [
        (lambda t, x, y: t.matmul(x, y), X, real(3, 4)),
        (lambda t, x, y: t.matmul(x, y), ROW, real(3)),
        (lambda t, x, y: t.matmul(x, y), X, ROW),
        (lambda t, x, y: t.matmul(x, y), real(2), X),
        (lambda t, x, y: t.matmul(x, y), CUBE, real(4, 5)),
        (lambda t, x, y: t.matmul(x, y), CUBE, real(4)),
        (lambda t, x, y: t.matmul(x, y), real(3), real(5, 3, 2)),
        (lambda t, x, y: t.matmul(x, y), real(5, 1, 2, 3), real(4, 3, 2)),
        (lambda t, x, y: t.matmul(x, y), real(2, 0), real(0, 3)),
        (lambda t, x, y: t.matmul(x, y), ints(0, 5, 2, 3), ints(0, 5, 3, 2)),
    ],
    "max": [
        (lambda t, x: t.max(x), TIES),
        (lambda t, x: tuple(t.max(x, 1)), D),
        (lambda t, x: tuple(t.max(x, 0, True)), D),
        (lambda t, x: t.max(x, 1).indices, TIES),
        (lambda t, x, y: t.max(x, y), X, Y),
        (lambda t, x: tuple(t.max(x, dim=1, keepdim=True)), CUBE),
        (lambda t, x: tuple(t.max(x, 0)), SCALAR),
        (lambda t, x: t.max(x), IDS),
    ],
    "maximum": [
        (lambda t, x, y: t.maximum(x, y), X, Y),
        (lambda t, x, y: t.maximum(x, y), TIES, np.full((2, 3), 3.0)),
        (lambda t, x, y: t.maximum(x, y), X, ROW),
    ],
    "mean": [
        (lambda t, x: t.mean(x), X),
        (lambda t, x: t.mean(x, 1), X),
        (lambda t, x: t.mean(x, (0, 2), True), CUBE),
        (lambda t, x: t.mean(x, []), CUBE),
        (lambda t, x: t.mean(x, dtype=t.float64), IDS),
        (lambda t, x: t.mean(x), SCALAR),
    ],
    "median": [
        (lambda t, x: t.median(x), D),
        (lambda t, x: t.median(x), distinct(3, 3)),
        (lambda t, x: t.median(x), ints(0, 9, 7)),
        (lambda t, x: tuple(t.median(x, 1)), distinct(2, 5)),
        (lambda t, x: tuple(t.median(x, 0, True)), distinct(4, 3)),
    ],
    "min": [
        (lambda t, x: t.min(x), TIES),
        (lambda t, x: tuple(t.min(x, 1)), D),
        (lambda t, x: t.min(x, -1, keepdim=True).values, CUBE),
        (lambda t, x, y: t.min(x, y), X, Y),
    ],
    "minimum": [
        (lambda t, x, y: t.minimum(x, y), X, Y),
        (lambda t, x, y: t.minimum(x, y), TIES, np.full((2, 3), 3.0)),
    ],
    "mm": [(lambda t, x, y: t.mm(x, y), X, real(3, 2))],
    "movedim": [
        (lambda t, x: t.movedim(x, 0, 2), CUBE),
        (lambda t, x: t.movedim(x, (0, 1), (-1, 0)), CUBE),
    ],
    "mul": [
        (lambda t, x, y: t.mul(x, y), X, Y),
        (lambda t, x, y: t.mul(x, y), COLUMN, ROW),
        (lambda t, x: t.mul(x, 3), X),
        (lambda t, x: t.mul(x, x), X),
    ],
    "multiply": [(lambda t, x, y: t.multiply(x, y), X, Y)],
    "mv": [(lambda t, x, y: t.mv(x, y), X, ROW)],
    "nan_to_num": [
        (lambda t, x: t.nan_to_num(x), np.array([1.0, np.nan, np.inf, -np.inf])),
        (lambda t, x: t.nan_to_num(x, 5.0, 6.0, -7.0), np.array([1.0, np.nan, np.inf, -np.inf])),
        (lambda t, x: t.nan_to_num(x), IDS),
    ],
    "narrow": [
        (lambda t, x: t.narrow(x, 1, 1, 2), X),
        (lambda t, x: t.narrow(x, -1, 0, 0), CUBE),
        (lambda t, x: t.narrow(x, 0, -1, 1), X),
    ],
    "ne": [(lambda t, x: t.ne(x, 3), TIES)],
    "neg": [(lambda t, x: t.neg(x), X)],
    "negative": [(lambda t, x: t.negative(x), IDS)],
    "nonzero": [
        (lambda t, x: t.nonzero(x), ZEROS),
        (lambda t, x: t.nonzero(x, as_tuple=True), MASK),
        (lambda t, x: t.nonzero(x), SCALAR),
        (lambda t, x: t.nonzero(x), np.zeros((2, 0))),
    ],
    "norm": [
        (lambda t, x: t.norm(x), X),
        (lambda t, x: t.norm(x, 1), X),
        (lambda t, x: t.norm(x, 3, 1), X),
        (lambda t, x: t.norm(x, float("inf"), 0, True), X),
        (lambda t, x: t.norm(x, -float("inf")), X),
        (lambda t, x: t.norm(x, 0, 1), ZEROS),
        (lambda t, x: t.norm(x, "fro"), X),
        (lambda t, x: t.norm(x, 2, (0, 2)), CUBE),
        (lambda t, x: t.norm(x, 0.5), X),
        (lambda t, x: t.norm(x, -2), X),
        (lambda t, x: t.norm(x, 2, 1), np.zeros((2, 3))),
    ],
    "not_equal": [(lambda t, x: t.not_equal(x, 3), TIES)],
    "outer": [(lambda t, x, y: t.outer(x, y), ROW, real(4))],
    "permute": [(lambda t, x: t.permute(x, (2, 0, -2)), CUBE)],
    "positive": [(lambda t, x: t.positive(x), X)],
    "pow": [
        (lambda t, x: t.pow(x, 2), X),
        (lambda t, x: t.pow(x, 3), X),
        (lambda t, x: t.pow(x, 1), X),
        (lambda t, x: t.pow(x, 0), ZEROS),
        (lambda t, x: t.pow(x, -1), P),
        (lambda t, x: t.pow(x, 0.5), P),
        (lambda t, x: t.pow(x, 2.5), P),
        (lambda t, x: t.pow(x, 2), ZEROS),
        (lambda t, x, y: t.pow(x, y), P, Y),
        (lambda t, x, y: t.pow(x, y), P, ROW),
        (lambda t, y: t.pow(2, y), Y),
        (lambda t, x: t.pow(x, 3), IDS),
        (lambda t, x: t.pow(x, 0.5), IDS),
        (lambda t, x, y: t.pow(x, y), ints(1, 4, 5), ints(0, 4, 5)),
    ],
    "prod": [
        (lambda t, x: t.prod(x), X),
        (lambda t, x: t.prod(x, 1), CUBE),
        (lambda t, x: t.prod(x, 0, True), ZEROS),
        (lambda t, x: t.prod(x, 1), np.array([[0.0, 0.0, 2.0], [0.0, 3.0, 4.0]])),
        (lambda t, x: t.prod(x), EMPTY),
        (lambda t, x: t.prod(x), SCALAR),
        (lambda t, x: t.prod(x), ints(1, 4, 4).astype(np.int32)),
        (lambda t, x: t.prod(x, 1), MASK),
        (lambda t, x: t.prod(x, 1, dtype=t.float64), IDS),
    ],
    "ravel": [(lambda t, x: t.ravel(x), CUBE)],
    "reciprocal": [(lambda t, x: t.reciprocal(x), P), (lambda t, x: t.reciprocal(x), IDS + 1)],
    "relu": [(lambda t, x: t.relu(x), ZEROS), (lambda t, x: t.relu(x), IDS)],
    "remainder": [
        (lambda t, x, y: t.remainder(x, y), X * 5, Y),
        (lambda t, x: t.remainder(x, -3), ints(-9, 9, 9)),
        (lambda t, y: t.remainder(7.5, y), Y),
    ],
    "repeat_interleave": [
        (lambda t, x: t.repeat_interleave(x, 2), X),
        (lambda t, x: t.repeat_interleave(x, 3, 1), X),
        (lambda t, x: t.repeat_interleave(x, 2, dim=-3), CUBE),
        (lambda t, x, r: t.repeat_interleave(x, r, 1), X, np.array([0, 2, 1])),
        (lambda t, x, r: t.repeat_interleave(x, r), ROW, np.array([3, 0, 2])),
    ],
    "reshape": [
        (lambda t, x: t.reshape(x, (3, 2)), X),
        (lambda t, x: t.reshape(x, (-1, 4)), CUBE),
        (lambda t, x: t.reshape(x, (1,)), SCALAR),
        (lambda t, x: t.reshape(x, ()), real(1)),
        (lambda t, x: t.reshape(x, (3, 0)), EMPTY),
        (lambda t, x: t.reshape(t.transpose(x, 0, 1), (6,)), X),
    ],
    "roll": [
        (lambda t, x: t.roll(x, 1), X),
        (lambda t, x: t.roll(x, -2, 1), X),
        (lambda t, x: t.roll(x, (1, 2), (0, 1)), X),
        (lambda t, x: t.roll(x, shifts=(1, 1), dims=(0, 0)), X),
    ],
    "round": [
        (lambda t, x: t.round(x), np.array([0.5, 1.5, -2.5, 0.49999999999999994, 3.2])),
        (lambda t, x: t.round(x, decimals=2), X),
        (lambda t, x: t.round(x, decimals=-1), X * 50),
        (lambda t, x: t.round(x), IDS),
    ],
    "rsqrt": [(lambda t, x: t.rsqrt(x), P)],
    "scatter": [
        (lambda t, x, i, s: t.scatter(x, 1, i, s), X, np.array([[0, 2], [1, 0]]), real(2, 2)),
        (lambda t, x, i, s: t.scatter(x, 0, i, s), X, np.array([[1, 0, 1]]), real(2, 3)),
        (lambda t, x, i: t.scatter(x, 1, i, 5.0), X, np.array([[0], [2]])),
    ],
    "scatter_add": [
        (lambda t, x, i, s: t.scatter_add(x, 1, i, s), X, IDS, real(2, 4)),
        (lambda t, x, i, s: t.scatter_add(x, 0, i, s), X, ints(0, 2, 5, 3), real(5, 3)),
        (lambda t, x, i, s: t.scatter_add(x, -1, i, s), X, IDS[:, :2], real(2, 4)),
    ],
    "select": [
        (lambda t, x: t.select(x, 1, 2), CUBE),
        (lambda t, x: t.select(x, -1, -1), CUBE),
        (lambda t, x: t.select(x, 0, 1), ROW),
    ],
    "sigmoid": [(lambda t, x: t.sigmoid(x), X * 20), (lambda t, x: t.sigmoid(x), IDS)],
    "sign": [(lambda t, x: t.sign(x), ZEROS), (lambda t, x: t.sign(x), ints(-2, 3, 6))],
    "sin": [(lambda t, x: t.sin(x), X), (lambda t, x: t.sin(x), IDS)],
    "sinh": [(lambda t, x: t.sinh(x), X)],
    "softmax": [
        (lambda t, x: t.softmax(x, 1), X),
        (lambda t, x: t.softmax(x, -2), CUBE * 50),
        (lambda t, x: t.softmax(x, 0), SCALAR),
        (lambda t, x: t.softmax(x, 0, dtype=t.float64), X.astype(np.float32)),
        (lambda t, x: t.softmax(x, 1), EMPTY),
    ],
    "sort": [
        (lambda t, x: tuple(t.sort(x)), D),
        (lambda t, x: tuple(t.sort(x, 0, descending=True)), D),
        (lambda t, x: tuple(t.sort(x, stable=True)), TIES),
        (lambda t, x: tuple(t.sort(x, dim=1, descending=True, stable=True)), TIES),
        (lambda t, x: tuple(t.sort(x)), SCALAR),
    ],
    "split": [
        (lambda t, x: t.split(x, 2), real(5, 2)),
        (lambda t, x: t.split(x, [1, 4], 0), real(5, 2)),
        (lambda t, x: t.split(x, 3, dim=1), X),
        (lambda t, x: t.split(x, [0, 2], 0), X),
    ],
    "sqrt": [(lambda t, x: t.sqrt(x), P)],
    "square": [(lambda t, x: t.square(x), X), (lambda t, x: t.square(x), IDS)],
    "squeeze": [
        (lambda t, x: t.squeeze(x), real(1, 3, 1)),
        (lambda t, x: t.squeeze(x, 0), real(1, 3, 1)),
        (lambda t, x: t.squeeze(x, 1), real(1, 3, 1)),
        (lambda t, x: t.squeeze(x, (0, 2)), real(1, 3, 1)),
        (lambda t, x: t.squeeze(x, ()), real(1, 3, 1)),
        (lambda t, x: t.squeeze(x, 0), SCALAR),
    ],
    "stack": [
        (lambda t, x, y: t.stack([x, y]), X, Y),
        (lambda t, x, y: t.stack((x, y), -1), X, Y),
        (lambda t, x, y: t.stack([x, y], 1), X, IDS[:, :3]),
        (lambda t, x, y: t.stack([x, y]), SCALAR, real()),
    ],
    "std": [
        (lambda t, x: t.std(x), X),
        (lambda t, x: t.std(x, 1), CUBE),
        (lambda t, x: t.std(x, (0, 2), correction=0, keepdim=True), CUBE),
        (lambda t, x: t.std(x, 0, unbiased=False), X),
    ],
    "sub": [
        (lambda t, x, y: t.sub(x, y), X, Y),
        (lambda t, x, y: t.sub(x, y, alpha=2), X, ROW),
    ],
    "subtract": [(lambda t, x: t.subtract(x, 1), X)],
    "sum": [
        (lambda t, x: t.sum(x), X),
        (lambda t, x: t.sum(x, 1), CUBE),
        (lambda t, x: t.sum(x, (0, -1), True), CUBE),
        (lambda t, x: t.sum(x, []), CUBE),
        (lambda t, x: t.sum(x, ()), CUBE),
        (lambda t, x: t.sum(x, 0), EMPTY),
        (lambda t, x: t.sum(x), EMPTY),
        (lambda t, x: t.sum(x), SCALAR),
        (lambda t, x: t.sum(x, 0), SCALAR),
        (lambda t, x: t.sum(x), MASK),
        (lambda t, x: t.sum(x, 1), IDS.astype(np.uint8)),
        (lambda t, x: t.sum(x, dtype=t.float32), IDS),
        (lambda t, x: t.sum(x, 0, dtype=t.float64), X.astype(np.float32)),
    ],
    "swapaxes": [(lambda t, x: t.swapaxes(x, 0, -1), CUBE)],
    "swapdims": [(lambda t, x: t.swapdims(x, 0, 1), CUBE)],
    "t": [(lambda t, x: t.t(x), X), (lambda t, x: t.t(x), ROW), (lambda t, x: t.t(x), SCALAR)],
    "take_along_dim": [
        (lambda t, x, i: t.take_along_dim(x, i, 1), X, IDS),
        (lambda t, x, i: t.take_along_dim(x, i), X, ints(0, 6, 4)),
        (lambda t, x, i: t.take_along_dim(x, i, 1), X, ints(0, 3, 1, 2)),
    ],
    "tan": [(lambda t, x: t.tan(x), U)],
    "tanh": [(lambda t, x: t.tanh(x), X)],
    "tensordot": [
        (lambda t, x, y: t.tensordot(x, y), CUBE, real(3, 4, 2)),
        (lambda t, x, y: t.tensordot(x, y, dims=1), X, real(3, 2)),
        (lambda t, x, y: t.tensordot(x, y, dims=0), ROW, X),
        (lambda t, x, y: t.tensordot(x, y, dims=([0, -1], [1, 0])), CUBE, real(4, 2, 5)),
    ],
    "tile": [
        (lambda t, x: t.tile(x, (2, 3)), X),
        (lambda t, x: t.tile(x, (2,)), X),
        (lambda t, x: t.tile(x, (2, 1, 2)), X),
    ],
    "topk": [
        (lambda t, x: tuple(t.topk(x, 2)), D),
        (lambda t, x: tuple(t.topk(x, 1, 0)), D),
        (lambda t, x: tuple(t.topk(x, 3, -1, False)), D),
        (lambda t, x: tuple(t.topk(x, 0)), D),
    ],
    "trace": [(lambda t, x: t.trace(x), X), (lambda t, x: t.trace(x), IDS)],
    "transpose": [(lambda t, x: t.transpose(x, 0, -1), CUBE)],
    "tril": [
        (lambda t, x: t.tril(x), CUBE),
        (lambda t, x: t.tril(x, 1), X),
        (lambda t, x: t.tril(x, diagonal=-1), X),
    ],
    "triu": [(lambda t, x: t.triu(x), CUBE), (lambda t, x: t.triu(x, -1), X)],
    "true_divide": [(lambda t, x, y: t.true_divide(x, y), IDS, IDS + 1)],
    "trunc": [(lambda t, x: t.trunc(x), X * 3)],
    "unbind": [(lambda t, x: t.unbind(x), X), (lambda t, x: t.unbind(x, -1), CUBE)],
    "unflatten": [
        (lambda t, x: t.unflatten(x, 1, (3, 2)), real(2, 6)),
        (lambda t, x: t.unflatten(x, -1, (-1, 2)), CUBE),
    ],
    "unique": [(lambda t, x: t.unique(x), IDS), (lambda t, x: t.unique(x), TIES)],
    "unsqueeze": [
        (lambda t, x: t.unsqueeze(x, 0), X),
        (lambda t, x: t.unsqueeze(x, -1), X),
        (lambda t, x: t.unsqueeze(x, 0), SCALAR),
    ],
    "var": [
        (lambda t, x: t.var(x), X),
        (lambda t, x: t.var(x, 1, keepdim=True), CUBE),
        (lambda t, x: t.var(x, (0, 1), correction=2), CUBE),
        (lambda t, x: t.var(x, unbiased=False), X),
        (lambda t, x: t.var(x, 1, True), X),
    ],
    "var_mean": [
        (lambda t, x: t.var_mean(x, 1), X),
        (lambda t, x: t.var_mean(x, (0, 2), correction=0, keepdim=True), CUBE),
        (lambda t, x: t.var_mean(x), X),
    ],
    "where": [
        (lambda t, m, x, y: t.where(m, x, y), MASK, X, Y),
        (lambda t, m, x: t.where(m, x, 0.0), MASK, X),
        (lambda t, m, x: t.where(m, 1, x), MASK, X),
        (lambda t, m: t.where(m), MASK),
        (lambda t, m, x, y: t.where(m, x, y), bools(3), COLUMN, ROW),
        (lambda t, m, x, y: t.where(m, x, y), MASK, IDS[:, :3], X),
        (lambda t, m: t.where(m, 1.5, 2.5), MASK),
        (lambda t, m: t.where(m, 1, 2), MASK),
    ],
}  # fmt: skip
TABLE = [
    (f"{name}-{k}", call, arguments)
    for name, cases in CASES.items()
    for k, (call, *arguments) in enumerate(cases)
]

NOT_IN_TORCH_TABLE = {
    "result_type",  # test_dtypes.py: every pair of dtypes
}


def exported():
    """The functions of tensors that gpugrad exports at the top level."""
    return {
        name
        for name in dir(gg.functions)
        if not name.startswith("_")
        and getattr(gg, name, None) is getattr(gg.functions, name)
        and callable(getattr(gg, name))
        and not inspect.isclass(getattr(gg, name))
        and not inspect.ismodule(getattr(gg, name))
        and name not in dir(gg.creation)
    }


def test_the_table_holds_every_exported_function():
    assert exported() - NOT_IN_TORCH_TABLE == set(CASES)


# torch has no derivative here, or refuses it for a source larger than its index
NO_GRADIENT_IN_TORCH = {
    "bincount",
    "floor_divide",
    "scatter-1",
    "scatter_add-2",
    "unique",
    "remainder-2",
}


def differentiable(name):
    return not {name, name.rpartition("-")[0]} & NO_GRADIENT_IN_TORCH


def tolerance(arguments):
    """Rounding of a few operations in the dtype of the result: integers become float32."""
    single = any(getattr(a, "dtype", None) != "float64" for a in arguments)
    return {"rtol": 1e-6, "atol": 1e-6} if single else {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize(("name", "call", "arguments"), TABLE, ids=[n for n, *_ in TABLE])
def test_equals_torch(judge, name, call, arguments):
    judge(call, *arguments, gradient=differentiable(name), **tolerance(arguments))


@pytest.mark.parametrize(("name", "call", "arguments"), TABLE, ids=[n for n, *_ in TABLE])
def test_equals_torch_in_float32(judge, name, call, arguments):
    """Results and gradients stay in float32 where torch's do."""
    singles = [a.astype(np.float32) if a.dtype == np.float64 else a for a in arguments]
    if name not in ("round-0", "logaddexp-0"):  # values between float32's; see the open case below
        judge(call, *singles, gradient=differentiable(name), rtol=2e-4, atol=1e-5)


class Methods:
    """A library whose functions are the methods of its tensors."""

    def __init__(self, library):
        self.library = library

    def __getattr__(self, name):
        if not hasattr(self.library.Tensor, name):
            return getattr(self.library, name)
        return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


METHODS = [
    (n, c, a)
    for n, c, a in TABLE
    # the first argument must be a tensor; where is x.where(condition, y) as a method
    if hasattr(gg.Tensor, n.rpartition("-")[0]) and n not in ("pow-10", "remainder-2")
]


@pytest.mark.parametrize(("name", "call", "arguments"), METHODS, ids=[n for n, *_ in METHODS])
def test_method_equals_torch(judge, torch, name, call, arguments):
    """The gradients are those of the function, which the method is."""
    libraries = (Methods(gg), Methods(torch))
    judge(call, *arguments, gradient=False, libraries=libraries, **tolerance(arguments))


# ------------------------------------------------------------------------------------------------
# special values and other dtypes


def words(text):
    return text.split()


UNARY = words("""
    abs acos acosh asin asinh atan atanh ceil cos cosh erf exp exp2 expm1 floor isfinite isinf isnan
    log log10 log1p log2 logical_not nan_to_num neg positive reciprocal relu round rsqrt sigmoid
    sign sin sinh sqrt square tan tanh trunc
""")
BINARY = words("""
    add atan2 div eq floor_divide fmod ge gt hypot le logaddexp logical_and logical_or logical_xor
    lt maximum minimum mul ne pow remainder sub
""")
FINITE = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, 30.0, -30.0]
SPECIAL = [*FINITE, 1e-30, -1e-30, 800.0, -800.0, float("inf"), -float("inf"), float("nan")]
ULPS = {"float16": 2e-3, "float32": 2e-6, "float64": 2e-14}


def gradient_points(name, x, y):
    """Where the derivatives are ours and torch's: not at the open cases below."""
    if name == "pow":
        return (x != 0) | (y >= 0)
    return (x != 0) | (y != 0) if name == "atan2" else np.ones(x.shape, bool)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY)
def test_special_values_of_one_argument(judge, name, dtype):
    def call(t, x):
        return getattr(t, name)(x)

    values = np.array(SPECIAL, dtype)
    if name == "sign":
        values = values[:-1]  # the sign of NaN is NumPy's NaN here, and 0 in torch
    with np.errstate(all="ignore"):
        judge(call, values, rtol=ULPS[dtype], atol=0, gradient=False)
        judge(call, values[: len(FINITE)], rtol=ULPS[dtype], atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BINARY)
def test_special_values_of_two_arguments(judge, name, dtype):
    def call(t, x, y):
        return getattr(t, name)(x, y)

    rtol = ULPS[dtype]
    with np.errstate(all="ignore"):
        x, y = (a.reshape(-1).astype(dtype) for a in np.meshgrid(SPECIAL, SPECIAL))
        judge(call, x, y, rtol=rtol, atol=0, gradient=False)
        if differentiable(name):
            x, y = (a.reshape(-1).astype(dtype) for a in np.meshgrid(FINITE, FINITE))
            keep = gradient_points(name, x, y)
            # exp(a - y) loses the digits that y has before its point
            judge(call, x[keep], y[keep], rtol=10 * rtol if name == "logaddexp" else rtol, atol=0)


# "not implemented for 'Bool'" (or for integers) in torch
NO_INTEGERS = {"hypot", "logaddexp"}
NO_BOOLS = NO_INTEGERS | set(
    words("abs ceil floor neg positive relu trunc round sub pow remainder fmod floor_divide")
)
OPEN_FOR_BOOLS = {"sign", "square"}


def dtype_cases(names):
    for name in names:
        for dtype in ("uint8", "int8", "int16", "int32", "int64", "bool", "float16"):
            if name in (NO_BOOLS if dtype == "bool" else NO_INTEGERS if dtype[0] in "ui" else ()):
                continue
            reason = "numpy has no such function of booleans; torch promotes or passes them"
            marks = pytest.mark.xfail(strict=True, reason=reason)
            open_case = dtype == "bool" and name in OPEN_FOR_BOOLS
            yield pytest.param(name, dtype, marks=marks if open_case else ())


@pytest.mark.parametrize(("name", "dtype"), list(dtype_cases(UNARY)))
def test_other_dtypes_of_one_argument(judge, name, dtype):
    x = np.array([0, 1, 2, 3, 7, 100], dtype)
    with np.errstate(all="ignore"):
        rtol = ULPS.get(dtype, ULPS["float32"])
        judge(lambda t, x: getattr(t, name)(x), x, rtol=rtol, atol=0, gradient=False)


@pytest.mark.parametrize(("name", "dtype"), list(dtype_cases(BINARY)))
def test_other_dtypes_of_two_arguments(judge, name, dtype):
    x, y = np.array([0, 1, 2, 3, 7, 100], dtype), np.array([1, 1, 3, 2, 2, 7], dtype)
    with np.errstate(all="ignore"):
        rtol = ULPS.get(dtype, ULPS["float32"])
        judge(lambda t, x, y: getattr(t, name)(x, y), x, y, rtol=rtol, atol=0, gradient=False)


def gradients(function, *values, dtype=gg.float32):
    xs = [gg.tensor(v, dtype=dtype, requires_grad=True) for v in values]
    with np.errstate(all="ignore"):
        return [g.item() for g in gg.autograd.grad(function(*xs), xs)]


def test_gradient_of_atan2_at_the_origin():
    assert gradients(gg.atan2, 0.0, 0.0) == [0.0, 0.0]


def test_gradient_of_logaddexp_far_from_zero():
    assert gradients(gg.logaddexp, -800.0, -800.0) == [0.5, 0.5]


def test_gradient_of_zero_to_a_negative_power_for_the_exponent():
    assert gradients(gg.pow, 0.0, -1.0)[1] == -float("inf")


@pytest.mark.parametrize("name", ["neg", "sub"])
def test_booleans_have_no_minus(judge, name):
    arguments = [MASK] if name == "neg" else [MASK, MASK]
    judge.same_error(lambda t, *xs: getattr(t, name)(*xs), *arguments)


# ------------------------------------------------------------------------------------------------
# errors

ERRORS = {
    "shapes": [
        (lambda t, x, y: t.add(x, y), X, real(4)),
        (lambda t, x, y: t.where(x > 0, x, y), X, real(4)),
        (lambda t, x, y: t.matmul(x, y), X, Y),
        (lambda t, x, y: t.matmul(x, y), X, SCALAR),
        (lambda t, x, y: t.mm(x, y), X, ROW),
        (lambda t, x, y: t.bmm(x, y), X, Y),
        (lambda t, x, y: t.bmm(x, y), CUBE, real(3, 4, 5)),
        (lambda t, x, y: t.mv(x, y), X, Y),
        (lambda t, x, y: t.dot(x, y), ROW, real(4)),
        (lambda t, x, y: t.dot(x, y), X, Y),
        (lambda t, x, y: t.outer(x, y), X, ROW),
        (lambda t, b, x, y: t.addmm(b, x, y), real(4), X, real(3, 3)),
        (lambda t, b, x, y: t.addmm(b, x, y), real(5, 2, 3), X, real(3, 3)),
        (lambda t, x, y: t.cat([x, y]), X, ROW),
        (lambda t, x, y: t.cat([x, y]), X, real(2, 4)),
        (lambda t, x: t.cat([x, x]), SCALAR),
        (lambda t: t.cat([]),),
        (lambda t, x, y: t.stack([x, y]), X, ROW),
        (lambda t: t.stack([]),),
        (lambda t, x: t.reshape(x, (4, 2)), X),
        (lambda t, x: t.reshape(x, (-1, -1)), X),
        (lambda t, x: t.reshape(x, (-1, 4)), X),
        (lambda t, x: t.reshape(x, (-2, 3)), X),
        (lambda t, x: t.reshape(x, (-1, 0)), EMPTY),
        (lambda t, x: t.broadcast_to(x, (2, 4)), X),
        (lambda t, x: t.broadcast_to(x, (3,)), X),
        (lambda t, x, y: t.broadcast_tensors(x, y), X, real(4)),
        (lambda t, x: t.unflatten(x, 1, (2, 2)), X),
        (lambda t, x: t.split(x, [1, 2]), X),
        (lambda t, x: t.split(x, -1), X),
        (lambda t, x: t.split(x, 0), X),
        (lambda t, x: t.chunk(x, 0), X),
        (lambda t, x: t.narrow(x, 0, 1, 2), X),
        (lambda t, x: t.narrow(x, 0, 0, -1), X),
        (lambda t, x: t.narrow(x, 0, 3, 0), X),
        (lambda t, x: t.narrow(x, 0, -3, 1), X),
        (lambda t, x: t.narrow(x, 0, 0, 1), SCALAR),
        (lambda t, x: t.permute(x, (0,)), X),
        (lambda t, x: t.permute(x, (0, 0)), X),
        (lambda t, x: t.t(x), CUBE),
        (lambda t, x: t.movedim(x, (0, 1), (0,)), X),
        (lambda t, x: t.movedim(x, (0, 0), (0, 1)), X),
        (lambda t, x: t.movedim(x, (0, 1), (0, 0)), X),
        (lambda t, x: t.tile(x, (-1,)), X),
        (lambda t, x: t.repeat_interleave(x, -1), X),
        (lambda t, x, r: t.repeat_interleave(x, r, 1), X, np.array([1, 2])),
        (lambda t, x: t.roll(x, (1, 2), 0), X),
        (lambda t, x: t.roll(x, (1, 2)), X),
        (lambda t, x: t.trace(x), CUBE),
        (lambda t, x: t.trace(x), ROW),
        (lambda t, x: t.diag(x), CUBE),
        (lambda t, x: t.diag(x), SCALAR),
        (lambda t, x: t.tril(x), ROW),
        (lambda t, x, i: t.gather(x, 0, i), X, ints(0, 2, 2)),
        (lambda t, x, i: t.gather(x, 0, i), X, ints(0, 2, 2, 4)),
        (lambda t, x, i: t.gather(x, 1, i), X, np.array([[3]])),
        (lambda t, x, i: t.gather(x, 1, i), X, np.array([[-1]])),
        (lambda t, x, i: t.scatter(x, 1, i, 1.0), X, np.array([[3]])),
        (lambda t, x, i, s: t.scatter(x, 1, i, s), X, np.zeros((2, 2), np.int64), real(2, 1)),
        (lambda t, x, i, s: t.scatter_add(x, 1, i, s), X, np.zeros((2, 2), np.int64), real(2, 1)),
        (lambda t, x, i, s: t.scatter_add(x, 1, i, s), X, np.full((2, 2), 3), real(2, 2)),
        (lambda t, x, i, s: t.scatter_add(x, 1, i, s), X, np.zeros((3, 2), np.int64), real(3, 2)),
        (lambda t, x, i: t.index_select(x, 0, i), X, np.array([2])),
        (lambda t, x, i: t.index_select(x, 0, i), X, np.array([-1])),
        (lambda t, x, i: t.index_select(x, 0, i), X, np.array([[0]])),
        (lambda t, x, i, s: t.index_add(x, 0, i, s), X, np.array([0, 1]), real(1, 3)),
        (lambda t, x, i, s: t.index_add(x, 0, i, s), X, np.array([0, 2]), real(2, 3)),
        (lambda t, x, i, s: t.index_add(x, 0, i, s), X, np.array([0, -1]), real(2, 3)),
        (lambda t, x, m: t.masked_select(x, m), X, bools(4)),
        (lambda t, x, m: t.masked_fill(x, m, 1.0), X, bools(4)),
        (lambda t, x, m, v: t.masked_fill(x, m, v), X, MASK, ROW),
        (lambda t, x, y: t.tensordot(x, y, dims=1), X, X),
        (lambda t, x, y: t.einsum("ij,jk", x, y), X, X),
        (lambda t, x: t.einsum("ijk", x), X),
        (lambda t, x: t.einsum("ij,jk", x), X),
        (lambda t, x: t.einsum("ij->k", x), X),
        (lambda t, x, i: t.take_along_dim(x, i, 0), X, np.array([0])),
        (lambda t, x: t.topk(x, 4), X),
        (lambda t, x: t.topk(x, -1), X),
        (lambda t, x: t.amax(x), EMPTY),
        (lambda t, x: t.amax(x, 0), EMPTY),
        (lambda t, x: t.argmax(x), EMPTY),
        (lambda t, x: t.max(x), EMPTY),
        (lambda t, x: t.max(x, 0), EMPTY),
        (lambda t, x: t.select(x, 0, 2), X),
        (lambda t, x: t.select(x, 0, -3), X),
        (lambda t, x: t.select(x, 0, 0), SCALAR),
        (lambda t, x: t.unbind(x), SCALAR),
        (lambda t, x: t.flatten(x, 1, 0), X),
        (lambda t, x: t.clamp(x), X),
        (lambda t, x: t.div(x, 2, rounding_mode="up"), X),
        (lambda t, x: t.bincount(x), np.array([1, -1])),
        (lambda t, x: t.bincount(x), X),
        (lambda t, x, w: t.bincount(x, w), IDS[0], ROW),
    ],
    "dims": [
        (lambda t, x: t.sum(x, 2), X),
        (lambda t, x: t.sum(x, (0, 0)), X),
        (lambda t, x: t.sum(x, (0, -2)), X),
        (lambda t, x: t.mean(x, -3), X),
        (lambda t, x: t.prod(x, 2), X),
        (lambda t, x: t.prod(x, 1), SCALAR),
        (lambda t, x: t.amax(x, (0, 0)), X),
        (lambda t, x: t.argmax(x, 2), X),
        (lambda t, x: t.argmax(x, 1), SCALAR),
        (lambda t, x: t.max(x, 2), X),
        (lambda t, x: t.any(x, 2), X),
        (lambda t, x: t.var(x, 2), X),
        (lambda t, x: t.norm(x, 2, 2), X),
        (lambda t, x: t.cumsum(x, 2), X),
        (lambda t, x: t.cumsum(x, 1), SCALAR),
        (lambda t, x: t.sort(x, 2), X),
        (lambda t, x: t.sort(x, 1), SCALAR),
        (lambda t, x: t.argsort(x, 2), X),
        (lambda t, x: t.topk(x, 1, 2), X),
        (lambda t, x: t.median(x, 2), X),
        (lambda t, x: t.softmax(x, 2), X),
        (lambda t, x: t.softmax(x, 1), SCALAR),
        (lambda t, x: t.log_softmax(x, -3), X),
        (lambda t, x: t.logsumexp(x, 2), X),
        (lambda t, x: t.flatten(x, 3), X),
        (lambda t, x: t.transpose(x, 0, 2), X),
        (lambda t, x: t.permute(x, (0, 2)), X),
        (lambda t, x: t.unsqueeze(x, 3), X),
        (lambda t, x: t.unsqueeze(x, -4), X),
        (lambda t, x: t.squeeze(x, 2), X),
        (lambda t, x: t.squeeze(x, (0, 0)), X),
        (lambda t, x: t.squeeze(x, 1), SCALAR),
        (lambda t, x: t.stack([x, x], 4), X),
        (lambda t, x: t.cat([x, x], 2), X),
        (lambda t, x: t.split(x, 1, 2), X),
        (lambda t, x: t.chunk(x, 1, 2), X),
        (lambda t, x: t.unbind(x, 2), X),
        (lambda t, x: t.select(x, 2, 0), X),
        (lambda t, x: t.narrow(x, 2, 0, 1), X),
        (lambda t, x: t.flip(x, (2,)), X),
        (lambda t, x: t.flip(x, (0, 0)), X),
        (lambda t, x: t.roll(x, 1, 2), X),
        (lambda t, x: t.diagonal(x, 0, 0, 2), X),
        (lambda t, x: t.diagonal(x, 0, 1, 1), X),
        (lambda t, x: t.diagonal(x), ROW),
        (lambda t, x: t.movedim(x, 0, 2), X),
        (lambda t, x: t.repeat_interleave(x, 2, 2), X),
        (lambda t, x, i: t.gather(x, 2, i), X, IDS),
        (lambda t, x, i: t.index_select(x, 2, i), X, np.array([0])),
        (lambda t, x: t.count_nonzero(x, 2), X),
        (lambda t, x: t.unflatten(x, 2, (1,)), X),
    ],
    "dtypes": [
        (lambda t, x: t.mean(x), IDS),
        (lambda t, x: t.var(x), IDS),
        (lambda t, x: t.std(x), IDS),
        (lambda t, x: t.norm(x), IDS),
        (lambda t, x: t.softmax(x, 0), IDS),
        (lambda t, x, y: t.matmul(x, y), X, real(3, 2).astype(np.float32)),
        (lambda t, x, y: t.dot(x, y), ROW, np.array([1, 2, 3])),
        (lambda t, x, i: t.gather(x, 1, i), X, X),
        (lambda t, x, i: t.index_select(x, 1, i), X, ROW),
        (lambda t, x, i: t.scatter(x, 1, i, 1.0), X, X),
        (lambda t, x, i, s: t.scatter(x, 1, i, s), X, IDS[:, :2], ints(0, 3, 2, 2)),
        (lambda t, x, i, s: t.scatter_add(x, 1, i, s), X, IDS[:, :2], ints(0, 3, 2, 2)),
        (lambda t, x, i, s: t.index_add(x, 0, i, s), X, np.array([0, 1]), ints(0, 3, 2, 3)),
        (lambda t, c, x: t.where(c, x, x), X, Y),
        (lambda t, x, m: t.masked_fill(x, m, 1.0), X, IDS[:, :3]),
        (lambda t, x, m: t.masked_select(x, m), X, IDS[:, :3]),
        (lambda t, x: t.pow(x, -1), IDS),
        (lambda t, x: t.add(x, "text"), X),
        (lambda t, x: t.add(x, None), X),
        (lambda t, x: t.sum(x, "text"), X),
        (lambda t, x: t.sum(x, 0.5), X),
        (lambda t, x: t.reshape(x, (1.5, 2)), X),
    ],
}  # fmt: skip
ERROR_TABLE = [
    (f"{kind}-{k}", call, arguments)
    for kind, cases in ERRORS.items()
    for k, (call, *arguments) in enumerate(cases)
]


@pytest.mark.parametrize(
    ("call", "arguments"), [e[1:] for e in ERROR_TABLE], ids=[e[0] for e in ERROR_TABLE]
)
def test_errors_have_the_classes_of_torch(judge, call, arguments):
    judge.same_error(call, *arguments)
