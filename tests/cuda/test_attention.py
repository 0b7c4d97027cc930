"""Attention kernels (codegen/cuda_attention.py) against the formula in float64 and torch: lengths,
masks, layouts, dtypes; the same bits in every schedule; broken kernels are noticed."""

import gc

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.codegen import cuda_attention as kernels
from gpugrad.ops import attention as rows
from tests.cuda.judging import DTYPES, agrees, broken, on_device, rounded, wide

pytestmark = pytest.mark.gpu

cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install gpugrad[cuda13]")

PLAIN = {"scale": 0.3, "causal": False}
CAUSAL = {"scale": 0.3, "causal": True}
ROUNDINGS = 16  # of sums of up to 200 products


def arguments(rng, lead, queries, keys, head, value, dtype="float32"):
    """q, k, v and a cotangent."""
    shapes = (queries, head), (keys, head), (keys, value), (queries, value)
    return [rounded(rng.standard_normal((*lead, *shape)), dtype) for shape in shapes]


def check(q, k, v, g, *mask, dtype="float32", on=None, roundings=ROUNDINGS, **params):
    """Forward and backward of the kernels against the formula on the CPU."""
    values = [wide(a) for a in (q, k, v)] + [m if m.dtype == bool else wide(m) for m in mask]
    out = rows._attention(*values, **params)
    expected = rows._attention_vjp((True,) * 3, wide(g), out, *values, **params)
    on = [on_device(a) for a in (q, k, v, *mask)] if on is None else on
    found = kernels.attention(*on, **params)
    agrees(found, out, dtype, roundings=roundings)
    gradients = kernels.attention_vjp((True,) * 3, on_device(g), found, *on, **params)
    assert gradients is not None
    for d, e in zip(gradients, expected, strict=False):
        agrees(d, e, dtype, roundings=roundings)
    return found, gradients


@pytest.mark.parametrize("params", [PLAIN, CAUSAL], ids=["all", "causal"])
@pytest.mark.parametrize(
    "queries, keys", [(1, 1), (1, 70), (70, 1), (31, 33), (33, 31), (64, 64), (65, 129), (200, 7)]
)
def test_lengths(queries, keys, params, rng):
    """Parts of tiles, whole tiles, more than one; more queries than keys and fewer."""
    check(*arguments(rng, (1, 2), queries, keys, 16, 16), **params)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, rng):
    check(*arguments(rng, (2,), 67, 40, 16, 16, dtype), dtype=dtype, **PLAIN)
    check(*arguments(rng, (2,), 40, 67, 16, 16, dtype), dtype=dtype, **CAUSAL)


@pytest.mark.parametrize("head, value", [(1, 3), (40, 24), (64, 64), (128, 128)])
def test_heads(head, value, rng):
    """All sizes of tiles; sizes that fill them and not."""
    check(*arguments(rng, (), 37, 35, head, value), **PLAIN)


def test_float64_of_large_heads_is_left_to_the_formula(rng):
    q, k, v, g = arguments(rng, (), 5, 5, 128, 128, "float64")
    on = [on_device(a) for a in (q, k, v)]
    out = kernels.attention(*on, **PLAIN)
    assert kernels.attention_vjp((True,) * 3, on_device(g), out, *on, **PLAIN) is None


@pytest.mark.parametrize("shape", [(1, 40), (33, 1), (33, 40), (2, 1, 1, 40), (1, 3, 33, 40)])
def test_masks(shape, rng):
    given = arguments(rng, (2, 3), 33, 40, 16, 16)
    visible = rng.random(shape) < 0.6
    visible[..., :1] = True
    if shape[-1] == 40:
        check(*given, visible, **PLAIN)
    added = rng.standard_normal(shape).astype(np.float32)
    added[..., 1::5] = -np.inf if shape[-1] > 1 else 0
    check(*given, added, **PLAIN)
    check(*given, added, **CAUSAL)


def test_a_query_that_sees_nothing_is_nan_as_in_the_formula(rng):
    q, k, v, _ = arguments(rng, (), 5, 40, 16, 16)
    visible = np.ones((5, 40), bool)
    visible[3] = False
    found = kernels.attention(*map(on_device, (q, k, v, visible)), **PLAIN).get()
    assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, 0)).all()


def test_large_scores_do_not_overflow(rng):
    q, k, v, g = arguments(rng, (), 33, 70, 16, 16)
    check(q * 100, k, v, g, roundings=4000, **PLAIN)  # the scores' own, which are up to 1000


def test_layouts(rng):
    """Heads split off a row, columns apart, reversed rows, a mask of columns; the results lie as
    the arguments do."""
    q, k, v, g = arguments(rng, (2, 3), 33, 40, 16, 16)
    mask = rng.standard_normal((33, 40)).astype(np.float32)

    def laid(a, how):
        if how == "heads":
            return on_device(np.ascontiguousarray(a.swapaxes(1, 2))).swapaxes(1, 2)
        if how == "columns":
            return on_device(np.ascontiguousarray(a.swapaxes(2, 3))).swapaxes(2, 3)
        return on_device(np.ascontiguousarray(a[..., ::-1, :]))[..., ::-1, :]

    for how in ("heads", "columns", "reversed"):
        on = [laid(a, how) for a in (q, k, v)]
        out, gradients = check(q, k, v, g, mask, on=[*on, on_device(mask.T.copy()).T], **PLAIN)
        if how == "heads":
            for a in (out, *gradients):
                assert a.swapaxes(1, 2).flags.c_contiguous


def test_only_what_is_needed_is_computed(rng):
    q, k, v, g = (on_device(a) for a in arguments(rng, (), 33, 40, 16, 16))
    out = kernels.attention(q, k, v, **PLAIN)
    whole = kernels.attention_vjp((True, True, True), g, out, q, k, v, **PLAIN)
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        some = kernels.attention_vjp(needs, g, out, q, k, v, **PLAIN)
        for need, a, b in zip(needs, some, whole, strict=True):
            assert (a is None) if not need else (a == b).all()


def test_sums_are_kept_as_long_as_the_result(rng):
    q, k, v, g = (on_device(a) for a in arguments(rng, (), 33, 40, 16, 16))
    gc.collect()
    before = len(kernels._sums)
    out = kernels.attention(q, k, v, **PLAIN)
    assert len(kernels._sums) == before + 1
    first = kernels.attention_vjp((True,) * 3, g, out, q, k, v, **PLAIN)
    again = kernels.attention_vjp((True,) * 3, g, out.copy(), q, k, v, **PLAIN)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    del out
    gc.collect()
    assert len(kernels._sums) == before


def test_the_same_bits_in_every_schedule(rng, host_device):
    q, k, v, g = (on_device(a) for a in arguments(rng, (2,), 70, 65, 16, 16))
    results = set()
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)):
        with host_device.scheduled(order, seed):
            out = kernels.attention(q, k, v, **CAUSAL)
            found = (out, *kernels.attention_vjp((True,) * 3, g, out, q, k, v, **CAUSAL))
            results.add(b"".join(a.get().tobytes() for a in found))
    assert len(results) == 1


# ---- through the engine --------------------------------------------------------------------------

CASES = {
    "plain": {},
    "scale": {"scale": 0.7},
    "causal": {"is_causal": True},
    "visible": {"attn_mask": "visible"},
    "added": {"attn_mask": "added"},
}


@pytest.mark.parametrize("case", CASES)
def test_as_in_torch(case, rng, torch):
    q, k, v, g = arguments(rng, (2, 2), 9, 11, 8, 8, "float64")
    options = dict(CASES[case])
    if "attn_mask" in options:
        added = rng.standard_normal((9, 11))
        mask = added if options["attn_mask"] == "added" else added > -1
        mask[:, 0] = 1
        options["attn_mask"] = gg.tensor(mask, device="cuda")
    ours = [gg.tensor(a, device="cuda", requires_grad=True) for a in (q, k, v)]
    y = F.scaled_dot_product_attention(*ours, **options)
    assert y.grad_fn.name == "attentionBackward"
    if "attn_mask" in options:
        options["attn_mask"] = torch.tensor(mask)
    theirs = [torch.tensor(a, requires_grad=True) for a in (q, k, v)]
    z = torch.nn.functional.scaled_dot_product_attention(*theirs, **options)
    np.testing.assert_allclose(y.detach().cpu().numpy(), z.detach().numpy(), rtol=1e-10)
    y.backward(gg.tensor(g, device="cuda"))
    z.backward(torch.tensor(g))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.cpu().numpy(), b.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_what_has_no_kernel_is_composed(rng):
    """Dropout, a mask with a gradient, broadcast heads."""
    q, k, v, _ = arguments(rng, (2, 2), 5, 7, 8, 8, "float64")
    on = [gg.tensor(a, device="cuda") for a in (q, k, v)]
    assert F.scaled_dot_product_attention(*on, dropout_p=0.5).shape == (2, 2, 5, 8)
    mask = gg.zeros(5, 7, dtype=gg.float64, device="cuda", requires_grad=True)
    y = F.scaled_dot_product_attention(*on, mask)
    y.sum().backward()
    assert mask.grad.shape == (5, 7)
    z = F.scaled_dot_product_attention(on[0], on[1][:1], on[2][:1])
    host = F.scaled_dot_product_attention(*[gg.tensor(a) for a in (q, k[:1], v[:1])])
    np.testing.assert_allclose(z.cpu().numpy(), host.numpy(), rtol=1e-12)
    with pytest.raises(RuntimeError, match="is_causal"):
        F.scaled_dot_product_attention(*on, mask, is_causal=True)


def test_a_step_does_not_wait(rng, no_hidden_traffic):
    q, k, v, _ = arguments(rng, (2, 2), 33, 33, 16, 16)
    on = [gg.tensor(a, device="cuda", requires_grad=True) for a in (q, k, v)]
    visible = gg.tensor(rng.random((33, 33)) < 0.9, device="cuda")

    def step():
        for options in ({"is_causal": True}, {"attn_mask": visible}):
            F.scaled_dot_product_attention(*on, **options).sum().backward()

    step()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        step()


# ---- kernels broken on purpose -------------------------------------------------------------------

FORWARD, QUERY, KEY = "attention_forward.cu", "attention_query.cu", "attention_key.cu"
BROKEN = [
    ("attention.cuh", "first + row < end;", "true;"),
    ("attention.cuh", "key >= a.keys ||", ""),
    ("attention.cuh", "key > query", "key >= query"),
    (FORWARD, "a.keys);\n    __syncthreads();", "a.keys);"),
    (FORWARD, "    __syncthreads();\n  }", "  }"),
    (FORWARD, "sum[i] * shrink + row_sum(part)", "sum[i] + row_sum(part)"),
    (FORWARD, "total.at[i][c] *= shrink;", ";"),
    (QUERY, "(d[i][j] - deltas[at])", "d[i][j]"),
    (QUERY, "a.keys);\n    __syncthreads();", "a.keys);"),
    (QUERY, "    __syncwarp();", ""),
    (KEY, "    __syncwarp();\n#pragma unroll", "#pragma unroll"),
    (KEY, "a.causal ? p.first / LENGTH * LENGTH : 0", "a.causal ? p.first + LENGTH : 0"),
]


@pytest.mark.parametrize("file, right, wrong", BROKEN)
def test_a_broken_kernel_is_noticed(file, right, wrong, rng, host_device):
    """By a wrong result, an address outside of an array, or a schedule."""
    noticed = pytest.raises((AssertionError, RuntimeError))
    with broken(file, right, wrong, kernels._kernel), noticed, host_device.exact_allocations():
        for order, seed in (("shuffled", 2), ("forward", 0), ("reverse", 0)):
            with host_device.scheduled(order, seed):
                check(*arguments(rng, (1, 2), 70, 65, 16, 16), **CAUSAL)
                check(*arguments(rng, (), 33, 31, 16, 16), **PLAIN)
