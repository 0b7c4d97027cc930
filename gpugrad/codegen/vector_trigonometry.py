"""sin, cos and tan of vectors.

An argument is reduced to |r| <= pi/4 and a number of quarter turns by subtracting multiples of pi/2
in parts (W. J. Cody, W. Waite: Software Manual for the Elementary Functions, 1980). Vectors with an
element beyond 2**20 quarter turns, an infinity or NaN take a branch where these elements are
multiplied by the bits of 2/pi that matter (M. Payne, R. Hanek, 1983), one by one. float32 is
computed in float64 and rounded once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .ir import Code, Value
from .vector_base import absolute, head, horner, is_single, narrowed, nearest, widened

_TWO_OVER_PI = 0.6366197723675814
_FARTHEST = 1.6e6  # below 2**20 quarter turns: products with 33 bits of pi/2 are exact
_PI_HALF_32 = (1.5707963267341256, 6.077100506506192e-11)
_PI_HALF_64 = (
    1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21, 8.4784276603689e-32,
)  # fmt: skip
# Minimax polynomials on |r| <= pi/4: sin(r) = r + r**3 (...), cos(r) = 1 - r**2 / 2 + r**4 (...)
_SIN_32 = (
    -0.1666666664142703, 0.008333329362292394, -0.0001983932713460669, 2.7182372330599936e-06,
)  # fmt: skip
_COS_32 = (
    0.041666666622477255, -0.001388888372265027, 2.4799511771441713e-05, -2.720954835635752e-07,
)  # fmt: skip
_SIN_64 = (
    -0.16666666666666632, 0.008333333333322316, -0.00019841269829725346, 2.7557313662094935e-06,
    -2.5050753269279795e-08, 1.5896505178497516e-10,
)  # fmt: skip
_COS_64 = (
    0.0416666666666666, -0.001388888888887399, 2.480158728939495e-05, -2.755731432602047e-07,
    2.0875719555529986e-09, -1.1359448444202522e-11,
)  # fmt: skip


def sin(x: Value) -> Value:
    angle = _reduced(x)
    sine, cosine = (a + b for a, b in _sine_and_cosine(angle))
    return narrowed(_turned(sine, cosine, angle.quarters, angle.sign), x)


def cos(x: Value) -> Value:
    angle = _reduced(x)
    sine, cosine = (a + b for a, b in _sine_and_cosine(angle))
    return narrowed(_turned(sine, cosine, angle.quarters + 1), x)


def tan(x: Value) -> Value:
    select = x.code.select
    angle = _reduced(x)
    (a, b), (c, d) = _sine_and_cosine(angle)
    odd = (angle.quarters & 1).compare("ne", 0)
    a, b, c, d = select(odd, c, a), select(odd, d, b), select(odd, a, c), select(odd, b, d)
    above, below = a + b, c + d
    size = above / below
    if not is_single(x):  # what the three roundings lost
        size_head, below_head = head(size), head(below)
        rest = above - size_head * below_head  # exact
        rest = rest - size_head * (below - below_head) + ((a - above) + b)
        size = size_head + (rest - size * ((c - below) + d)) / below
    sign = angle.quarters.bitwise("shl", 63) ^ angle.sign
    return narrowed((size.bits ^ sign).real, x)


class _Angle(NamedTuple):
    """``quarters * pi/2 + r + low`` is |x|, in float64; ``low`` is None where r is precise
    enough. ``sign`` is the sign bit of x."""

    r: Value
    low: Value | None
    quarters: Value
    sign: Value


def _sine_and_cosine(angle: _Angle) -> tuple[tuple[Value, Value], tuple[Value, Value]]:
    """Each in two parts, the second small."""
    r, low = angle.r, angle.low
    fma = r.code.fma
    z = r * r
    half = z * 0.5
    cosine = 1.0 - half
    if low is None:
        return (r, z * r * horner(z, _SIN_32)), (cosine, z * z * horner(z, _COS_32))
    lost = (1.0 - cosine) - half
    sine_rest = fma(z * r, horner(z, _SIN_64), low * cosine)
    return (r, sine_rest), (cosine, lost + fma(z * z, horner(z, _COS_64), -(r * low)))


def _turned(sine: Value, cosine: Value, quarters: Value, sign: Value | None = None) -> Value:
    """The sine after a number of quarter turns."""
    value = sine.code.select((quarters & 1).compare("ne", 0), cosine, sine)
    flip = (quarters & 2).bitwise("shl", 62)
    return (value.bits ^ (flip if sign is None else flip ^ sign)).real


def _reduced(x: Value) -> _Angle:
    code, single = x.code, is_single(x)
    wide = widened(x)
    a = absolute(wide)
    rounded, quarters = nearest(a, _TWO_OVER_PI)
    r, low = (_rest_32 if single else _rest_64)(a, rounded)
    values = [r, quarters] if low is None else [r, quarters, low]
    far = absolute(x).compare("ugt", _FARTHEST)
    # the call is in a branch that LLVM takes for unlikely: the function is "cold"
    values = code.choose(_any(far), lambda: _call(a, values), lambda: values)
    return _Angle(values[0], None if single else values[2], values[1], wide.bits & -(1 << 63))


def _rest_32(a: Value, n: Value) -> tuple[Value, None]:
    fma = a.code.fma
    first, second = _PI_HALF_32
    return fma(n, -second, fma(n, -first, a)), None


def _rest_64(a: Value, n: Value) -> tuple[Value, Value]:
    """``a - n pi/2`` in two parts: products with the first three parts of pi/2 are exact, the
    difference of the first one is, and what the other two differences lose is kept."""
    fma = a.code.fma
    first, second, third, fourth = _PI_HALF_64
    r = fma(n, -first, a)
    s = fma(n, -second, r)
    lost = fma(n, -second, r - s)
    t = fma(n, -third, s)
    lost = lost + fma(n, -third, s - t)
    return t, fma(n, -fourth, lost)


def _any(mask: Value) -> Value:
    return mask.code.call("vector.reduce.or", mask, result="i1")


# ------------------------------------------------------------------------------------------------
# arguments far from zero

_PI_HALF = 0xC90FDAA22168C234  # pi/2 times 2**63
_WORDS = 21  # of 64 bits: what the largest float64 needs, after a word of zeros


@lru_cache(1)
def _bits_of_two_over_pi() -> list[int]:
    """Words of 2/pi, the first one 0."""
    bits = 64 * (_WORDS - 1)
    guard = 64
    one = 1 << bits + guard

    def arctangent_of_inverse(n: int) -> int:
        total, term, k = 0, one // n, 1
        while term:
            total += term // k if k % 4 == 1 else -(term // k)
            term //= n * n
            k += 2
        return total

    pi = 16 * arctangent_of_inverse(5) - 4 * arctangent_of_inverse(239)  # J. Machin
    digits = (2 * one * one // pi) >> guard
    return [digits >> 64 * k & (1 << 64) - 1 for k in reversed(range(_WORDS))]


def _call(a: Value, values: list[Value]) -> list[Value]:
    """The values of ``_reduced`` with those of far elements replaced."""
    code, lanes = a.code, int(a.type[1:].split(" x ")[0])
    results = f"{{{', '.join(v.type for v in values)}}}"
    symbol = f"@far_angles_{len(values)}_{lanes}"
    code.declarations.update(_far_angles(lanes, len(values)))
    found = code.emit(f"call {results} {symbol}({', '.join(map(str, (a, *values)))})", results)
    return [code.emit(f"extractvalue {found}, {k}", v.type) for k, v in enumerate(values)]


def _table_text() -> str:
    words = ", ".join(f"i64 {word}" for word in _bits_of_two_over_pi())
    return f"@two_over_pi = private constant [{_WORDS} x i64] [{words}]"


@lru_cache(8)
def _far_angles(lanes: int, count: int) -> list[str]:
    """What declares a function ``far_angles(a, r, quarters[, low])``, which gives its last
    arguments."""
    code = Code("double", lanes)
    kinds = ("double", "double", "i64", "double")[: 1 + count]
    given = [code.parameter(f"v{k}", f"<{lanes} x {kind}>") for k, kind in enumerate(kinds)]
    places = [code.emit(f"alloca {v.type}", "ptr") for v in given]
    for value, place in zip(given, places, strict=True):
        code.store(value, place)
    with code.loop(code.integer(0), code.integer(lanes)) as i:
        a = code.load(code.at(places[0], i), "double")

        def replace() -> list[Value]:
            for value, place in zip(_far_angle(a), places[1:], strict=False):
                code.store(value, code.at(place, i))
            return []

        code.choose(a.compare("ugt", _FARTHEST), replace, list)
    results = f"{{{', '.join(v.type for v in given[1:])}}}"
    found = Value(code, "poison", results)
    for k, (place, v) in enumerate(zip(places[1:], given[1:], strict=True)):
        value = code.load(place, v.type)
        found = code.emit(f"insertvalue {found}, {value}, {k}", results)
    name = f"far_angles_{count}_{lanes}"
    return [_table_text(), *code.rarely_called(name, given, found)]


def _far_angle(a: Value) -> tuple[Value, Value, Value]:
    """``r, quarters, low`` of one number a >= 2**20, in integers.

    a = m 2**e. Of 2/pi = 0.b1 b2 ..., bits before b(e - 1) give whole turns. The next
    192 times m, the first 128 bits of it, are two bits of quarter turns and a fraction that has 64
    bits after the zeros it may begin with, of which no float64 has more than 62.
    """
    code = a.code
    exponent = a.bits.bitwise("lshr", 52) - 1075
    m = a.bits & (1 << 52) - 1 | 1 << 52
    words = _window(code, exponent + 62)  # bit b1 is number 64
    low = m.convert("zext", "i128") * words[2].convert("zext", "i128")
    middle = m.convert("zext", "i128") * words[1].convert("zext", "i128")
    top = (m * words[0]).convert("zext", "i128").bitwise("shl", 64)
    product = top + middle + low.bitwise("lshr", 64)
    quarters = (product + (1 << 125)).bitwise("lshr", 126).convert("trunc", "i64")
    fraction = product.bitwise("shl", 2)  # signed, times 2**128
    negative = fraction.compare("slt", 0)
    size = code.select(negative, 0 - fraction, fraction)
    zeros = code.call("ctlz", size, Value(code, "false", "i1"))
    digits = size.bitwise("shl", zeros).bitwise("lshr", 64)
    digits = (digits * _PI_HALF).bitwise("lshr", 64).convert("trunc", "i64")
    scale = (1023 - 63 - zeros.convert("trunc", "i64")).bitwise("shl", 52).real
    scale = code.select(negative, -scale, scale)
    scale = code.select(a < float("inf"), scale, float("nan"))
    r = (digits & -2048).convert("uitofp", "double") * scale
    return r, quarters, (digits & 2047).convert("uitofp", "double") * scale


def _window(code: Code, start: Value) -> list[Value]:
    """192 bits of the table, from a bit on."""
    word, bit = start.bitwise("lshr", 6), start & 63
    table = Value(code, "@two_over_pi", "ptr")
    words = [code.load(code.at(table, word + k), "i64") for k in range(4)]
    return [code.call("fshl", words[k], words[k + 1], bit) for k in range(3)]
