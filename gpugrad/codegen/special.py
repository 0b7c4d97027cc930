"""Special functions NumPy does not have, as array functions."""

from __future__ import annotations

import sys


def _polynomial(x, coefficients):
    """Horner's rule, in place; coefficients from the constant term up."""
    result = x * coefficients[-1]
    for c in coefficients[-2:0:-1]:
        result += c
        result *= x
    result += coefficients[0]
    return result


# Rational approximations of W. J. Cody's kind with the coefficients of Sun Microsystems' fdlibm,
# s_erf.c (1993).
_P = (
    1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02,
    -5.77027029648944159157e-03, -2.37630166566501626084e-05,
)  # fmt: skip
_Q = (
    1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03,
    1.32494738004321644526e-04, -3.96022827877536812320e-06,
)  # fmt: skip
_PA = (
    -2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01,
    3.18346619901161753674e-01, -1.10894694282396677476e-01, 3.54783043256182359371e-02,
    -2.16637559486879084300e-03,
)  # fmt: skip
_QA = (
    1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02,
    1.26171219808761642112e-01, 1.36370839120290507362e-02, 1.19844998467991074170e-02,
)  # fmt: skip
_RA = (
    -9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e01,
    -6.23753324503260060396e01, -1.62396669462573470355e02, -1.84605092906711035994e02,
    -8.12874355063065934246e01, -9.81432934416914548592e00,
)  # fmt: skip
_SA = (
    1.0, 1.96512716674392571292e01, 1.37657754143519042600e02, 4.34565877475229228821e02,
    6.45387271733267880336e02, 4.29008140027567833386e02, 1.08635005541779435134e02,
    6.57024977031928170135e00, -6.04244152148580987438e-02,
)  # fmt: skip
_RB = (
    -9.86494292470009928597e-03, -7.99283237680523006574e-01, -1.77579549177547519889e01,
    -1.60636384855821916062e02, -6.37566443368389627722e02, -1.02509513161107724954e03,
    -4.83519191608651397019e02,
)  # fmt: skip
_SB = (
    1.0, 3.03380607434824582924e01, 3.25792512996573918826e02, 1.53672958608443695994e03,
    3.19985821950859553908e03, 2.55305040643316442583e03, 4.74528541206955367215e02,
    -2.24409524465858183362e01,
)  # fmt: skip
_ERX = 8.45062911510467529297e-01  # erf(1), rounded to float32


def _tail(a, np):
    """1 - erf(a) for 1.25 <= a < 6."""
    inverse = 1.0 / (a * a)
    ratio = np.where(
        a < 1 / 0.35,
        _polynomial(inverse, _RA) / _polynomial(inverse, _SA),
        _polynomial(inverse, _RB) / _polynomial(inverse, _SB),
    )
    # exp(-a*a) keeps its digits when a is split into a part whose square is exact and the rest.
    head = a.astype(np.float32).astype(np.float64)
    return np.exp(-head * head - 0.5625) * np.exp((head - a) * (head + a) + ratio) / a


def erf(x, out=None):
    """The error function, within 1 ulp in float64 and correctly rounded nearly always in
    float32."""
    np = sys.modules["numpy"]
    x = np.asarray(x)
    values = x.astype(np.float64, copy=False).reshape(-1)
    a = np.abs(values)
    result = np.sign(values)  # |x| >= 6: erf is +-1 to double precision; NaN stays NaN
    small = a < 0.84375
    if small.any():
        v = values[small]
        z = v * v
        result[small] = v + v * (_polynomial(z, _P) / _polynomial(z, _Q))
    middle = (a >= 0.84375) & (a < 1.25)
    if middle.any():
        s = a[middle] - 1.0
        result[middle] = np.copysign(
            _ERX + _polynomial(s, _PA) / _polynomial(s, _QA), values[middle]
        )
    large = (a >= 1.25) & (a < 6.0)
    if large.any():
        result[large] = np.copysign(1.0 - _tail(a[large], np), values[large])
    result = result.reshape(x.shape)
    if out is None:
        return result.astype(x.dtype, copy=False)
    np.copyto(out, result, casting="same_kind")
    return out
