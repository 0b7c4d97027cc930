"""Mathematical functions of vectors in LLVM IR, nearly without branches.

They stay within 2 units in the last place of the exact value (tanh in float64: 3) for every
argument, denormal numbers included, with and without fused multiply-add;
``tests/codegen/test_llvm.py`` measures it. NaN propagates, limits are exact. Polynomials are, for
float32, those of S. L. Moshier's Cephes library (expf.c, exp2f.c, logf.c, tanhf.c; 1992), for
float64 those of Sun Microsystems' fdlibm (e_exp.c, e_log.c; 1993), whose erf is in ``special``, or
minimax polynomials found by Remez's algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from . import special
from .arrays import Program
from .ir import Value
from .vector_base import (
    absolute,
    clamp,
    exp_excess,
    exp_reduced,
    format_of,
    horner,
    is_single,
    log_tail,
    nearest,
    normal,
    power_of_two,
    scaled,
    split,
    with_sign_of,
)
from .vector_power import pow
from .vector_trigonometry import cos, sin, tan

_INF = math.inf


def exp(x: Value) -> Value:
    n, small = exp_reduced(clamp(x, *format_of(x).exp_range))
    return scaled(small + 1.0, n)


def expm1(x: Value) -> Value:
    select = x.code.select
    form = format_of(x)
    n, small = exp_reduced(clamp(x, form.expm1_low, form.exp_range[1]))
    # 2**n (exp(r) - 1) + (2**n - 1), at half size so that 2**128 does not overflow
    half = power_of_two(n - 1)
    y = x.code.fma(half, small, half - 0.5) * 2.0
    y = select(n.compare("eq", 0), small, y)  # keeps the bits of denormal numbers
    return select(x.equals(0.0), x, y)  # and the sign of zero


_EXP2 = (
    6.931472028550421e-1, 2.402264791363012e-1, 5.550332471162809e-2, 9.618437357674640e-3,
    1.339887440266574e-3, 1.535336188319500e-4,
)  # fmt: skip


def exp2(x: Value) -> Value:
    """exp2f.c; in float64 exp(r log 2)."""
    x = clamp(x, *format_of(x).exp2_range)
    rounded, n = nearest(x, 1.0)
    r = x - rounded
    if is_single(x):
        return scaled(x.code.fma(r, horner(r, _EXP2), 1.0), n)
    r = r * math.log(2)
    return scaled(r + exp_excess(r) + 1.0, n)


def _outside(x: Value, y: Value, zero: float = 0.0) -> Value:
    """The values of a logarithm with its pole at ``zero``: at the pole, below, at infinity and
    NaN."""
    select = x.code.select
    y = select(x.equals(_INF), x, y)
    y = select(x.equals(zero), -_INF, y)
    y = select(x < zero, math.nan, y)
    return select(x.is_nan(), x, y)


def log(x: Value) -> Value:
    fma = x.code.fma
    high, low = format_of(x).ln2
    near, correction = normal(x)
    _, e, f = split(near)
    e = e + correction
    return _outside(x, fma(e, high, f + fma(e, low, log_tail(f))))


def log1p(x: Value) -> Value:
    """log of u = 1 + x, with what rounding u lost added to its fraction."""
    fma, select, form = x.code.fma, x.code.select, format_of(x)
    u = x + 1.0
    lost = select(x > 1.0, 1.0 - (u - x), x - (u - 1.0))
    n, e, f = split(u)
    lowest = 1 - form.bias
    scale = select((0 - n).compare("slt", lowest), lowest, 0 - n)
    f = f + lost * power_of_two(scale)
    high, low = form.ln2
    y = fma(e, high, f + fma(e, low, log_tail(f)))
    return select(x.equals(0.0), x, _outside(x, y, -1.0))  # keeps the sign of zero


def log2(x: Value) -> Value:
    fma = x.code.fma
    near, correction = normal(x)
    _, e, f = split(near)
    tail = log_tail(f)
    excess = math.log2(math.e) - 1  # smaller than log2(e), and so is its rounding
    y = fma(f, excess, fma(tail, excess, tail)) + f
    return _outside(x, y + (e + correction))


def log10(x: Value) -> Value:
    return log(x) * math.log10(math.e)


_TANH = (
    -3.33332819422e-1, 1.33314422036e-1, -5.37397155531e-2, 2.06390887954e-2, -5.70498872745e-3,
)  # fmt: skip


def tanh(x: Value) -> Value:
    """A polynomial below 0.625, else 1 - 2 / (exp(2 |x|) + 1)."""
    a = absolute(x)
    z = x * x
    near = x.code.fma(a * z, horner(z, _TANH), a)
    n, small = exp_reduced(clamp(a, 0.0, 10.0) * 2.0)  # tanh(10) rounds to 1
    power = power_of_two(n)
    far = 1.0 - 2.0 / (small * power + (power + 1.0))
    return with_sign_of(x.code.select(a < 0.625, near, far), x)


def tanh64(x: Value) -> Value:
    """t / (t + 2) with t = exp(2 |x|) - 1."""
    n, small = exp_reduced(clamp(absolute(x), 0.0, 22.0) * 2.0)  # tanh(22) rounds to 1
    power = power_of_two(n)
    t = x.code.fma(power, small, power - 1.0)
    return with_sign_of(t / (t + 2.0), x)


# erf(x) / x - 1 for x up to 1.25, in x**2 - 0.78125: around 0 the terms would cancel each other
_ERF_64 = (
    -0.10768729855162729, -0.24044996737534727, 0.06551688790452763, -0.014779653506227827,
    0.0027769551956613892, -0.0004438010391333589, 6.151799483971929e-05, -7.517308525584503e-06,
    8.206175683357199e-07, -8.090716463801624e-08, 7.2699299631100425e-09,
    -6.000257607962338e-10, 4.623963129210941e-11, -3.2617272194270294e-12,
)  # fmt: skip


def erf(x: Value) -> Value:
    """Below 1.25 a polynomial, in float32 fdlibm's first formula; beyond, to where erf rounds to 1,
    fdlibm's third formula.

    Made for double precision up to 0.84375 and 2.857, fdlibm's are more precise than float32 on
    these wider ranges; of 1 - erf, which the third one gives, float64 has ever fewer digits.
    """
    fma = x.code.fma
    a = absolute(x)
    z = a * a
    single = is_single(x)
    if single:
        near = fma(a, horner(z, special._P) / horner(z, special._Q), a)
    else:
        near = fma(a, horner(z - 0.78125, _ERF_64), a)
    b = clamp(a, 1.0, 4.0 if single else 6.0)
    inverse = 1.0 / (b * b)
    ratio = horner(inverse, special._RA) / horner(inverse, special._SA)
    far = 1.0 - exp_simple(ratio - 0.5625 - b * b) / b
    return with_sign_of(x.code.select(a < 1.25, near, far), x)


def exp_simple(x: Value) -> Value:
    """exp between -87 and 88."""
    n, small = exp_reduced(x)
    return (small + 1.0) * power_of_two(n)


FLOAT32: dict[str, Callable[..., Value]] = {
    "exp": exp, "exp2": exp2, "expm1": expm1, "log": log, "log2": log2, "log10": log10,
    "log1p": log1p, "tanh": tanh, "erf": erf, "sin": sin, "cos": cos, "tan": tan, "pow": pow,
}  # fmt: skip
FLOAT64 = {**FLOAT32, "tanh": tanh64}


def for_element(element: str) -> dict[str, Callable[..., Value]]:
    """The functions there are for ``float`` or ``double``."""
    return FLOAT32 if element == "float" else FLOAT64


def nanoseconds(program: Program) -> float:
    """What an element of a program takes on one core, about, its own loads and stores included: a
    function of float32 0.6 to 1.2, everything else together 0.1."""
    return 0.1 + sum(step in FLOAT32 for step in program.steps)
