"""CUDA convolutions and both gradients against the reference in float64, in every dtype."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import functional as F
from gpugrad.codegen import cuda_convolution as kernels
from gpugrad.ops import REGISTRY, convolution
from tests.cuda.judging import DTYPES, agrees, broken, dtype_named, on_device, rounded, wide

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def own_kernels(monkeypatch):
    """Without cuDNN, which tests/cuda/test_cudnn.py is about."""
    monkeypatch.setattr(gg.backends.cudnn, "enabled", False)


class Layer:
    """A convolution: sizes, options, and random operands rounded to a dtype."""

    def __init__(
        self, rng, x, w, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1
    ):
        self.options = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups
        }  # fmt: skip
        self.x_shape, self.w_shape = x, w
        self.shape = convolution.output_shape(x, w, **self.options)
        self.values = [rng.normal(size=s) for s in (x, w, self.shape)]

    def operands(self, dtype: str) -> list[np.ndarray]:
        return [rounded(v, dtype) for v in self.values]

    def check(self, dtype: str) -> None:
        """All three operations agree with the reference in float64, where one sum of n products of
        numbers of size 1 is off by about sqrt(n) roundings of its terms."""
        x, w, g = self.operands(dtype)
        X, W, G = on_device(x, w, g)
        options = self.options
        per_weight = max(1, g.size // self.w_shape[0])
        agrees(
            kernels.forward(X, W, **options),
            convolution.forward(wide(x), wide(w), **options),
            dtype,
            size=_size(np.prod(self.w_shape[1:])),
        )
        agrees(
            kernels.input_gradient(G, W, shape=self.x_shape, **options),
            convolution.input_gradient(wide(g), wide(w), shape=self.x_shape, **options),
            dtype,
            size=_size(w.size // self.w_shape[1]),
        )
        agrees(
            kernels.weight_gradient(G, X, shape=self.w_shape, **options),
            convolution.weight_gradient(wide(g), wide(x), shape=self.w_shape, **options),
            dtype,
            size=_size(per_weight),
        )


def _size(terms) -> float:
    """Of the largest of many sums of so many products of normal numbers: five deviations."""
    return 5 * max(1.0, float(terms)) ** 0.5


def sizes(x, w, **options):
    """What a ``Layer`` is made of."""
    return {"x": x, "w": w, **options}


LAYERS = {
    "one pixel": sizes((1, 1, 1, 1), (1, 1, 1, 1)),
    "lenet 1": sizes((3, 1, 12, 12), (6, 1, 5, 5)),
    "lenet 2": sizes((3, 6, 9, 9), (16, 6, 5, 5)),
    "pointwise": sizes((2, 33, 5, 7), (17, 33, 1, 1)),
    "stride 2": sizes((2, 3, 13, 11), (9, 3, 3, 3), stride=(2, 2), padding=((1, 1), (1, 1))),
    "strides that leave pixels out": sizes((2, 2, 11, 10), (5, 2, 2, 1), stride=(3, 4)),
    "asymmetric padding": sizes((1, 4, 6, 5), (6, 4, 3, 2), padding=((2, 0), (0, 3))),
    "stride and dilation": sizes(
        (2, 3, 14, 15), (7, 3, 3, 2), stride=(2, 3), dilation=(2, 3), padding=((1, 0), (2, 2))
    ),
    "stride and dilation, common divisor": sizes(
        (1, 2, 15, 17), (5, 2, 3, 3), stride=(4, 6), dilation=(2, 4), padding=((3, 3), (1, 5))
    ),
    "kernel as large as the image": sizes((3, 5, 4, 6), (8, 5, 4, 6)),
    "groups": sizes((2, 12, 7, 5), (21, 4, 3, 3), groups=3, padding=((1, 1), (1, 1))),
    "depthwise": sizes((2, 9, 8, 7), (9, 1, 3, 3), groups=9, padding=((1, 1), (1, 1))),
    "depthwise, multiplier 2, stride 2": sizes(
        (2, 5, 9, 8), (10, 1, 3, 3), groups=5, stride=(2, 2), padding=((0, 1), (1, 0))
    ),
    "more pixels than a chunk": sizes((5, 3, 19, 17), (4, 3, 3, 3)),
    "more channels than a tile": sizes((1, 37, 6, 6), (131, 37, 2, 2)),
    "rows only": sizes((2, 3, 1, 40), (5, 3, 1, 7), padding=((0, 0), (3, 3))),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_reference(name, dtype, rng):
    Layer(rng, **LAYERS[name]).check(dtype)


@pytest.mark.parametrize("tile", kernels.TILES, ids=str)
def test_every_tile(tile, rng, monkeypatch):
    """Results have the same bits whatever the tile, which is chosen for speed alone."""
    layer = Layer(rng, (3, 10, 9, 7), (70, 5, 3, 3), padding=((1, 1), (0, 2)), groups=2)
    x, w, g = on_device(*layer.operands("float32"))
    expected = all_three(layer, x, w, g)
    monkeypatch.setattr(kernels, "_tile", lambda *sizes: tile)
    for a, b in zip(all_three(layer, x, w, g), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def all_three(layer, x, w, g):
    found = [
        kernels.forward(x, w, **layer.options),
        kernels.input_gradient(g, w, shape=x.shape, **layer.options),
        kernels.weight_gradient(g, x, shape=w.shape, **layer.options),
    ]
    return [a.get() for a in found]


def test_random_layers(rng):
    checked = 0
    while checked < 40:
        groups, kernel, dilation = (tuple(map(int, rng.integers(1, 4, 2))) for _ in range(3))
        padding = tuple(tuple(map(int, p)) for p in rng.integers(0, 3, (2, 2)))
        sizes = [int(n) for n in rng.integers(1, 16, 2)]
        fits = [n + sum(p) > d * (k - 1) for n, p, d, k in zip(sizes, padding, dilation, kernel)]
        if not all(fits):
            continue
        n, channels, filters = (int(v) for v in rng.integers(1, 8, 3))
        layer = Layer(
            rng,
            (n, channels * groups[0], *sizes),
            (filters * groups[0], channels, *kernel),
            stride=tuple(map(int, rng.integers(1, 5, 2))),
            padding=padding,
            dilation=dilation,
            groups=groups[0],
        )
        layer.check("float32" if checked % 2 else "float64")
        checked += 1


@pytest.mark.parametrize("x, w", [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 3, 5, 5), (0, 3, 3, 3))])
def test_empty(x, w, rng):
    layer = Layer(rng, x, w)
    for found, shape in zip(
        all_three(layer, *on_device(*layer.operands("float32"))), (layer.shape, x, w), strict=True
    ):
        assert found.shape == shape
        assert not found.any()


def test_operands_that_are_not_contiguous(rng):
    x, w = rng.normal(size=(6, 5, 3, 2)), rng.normal(size=(3, 2, 3, 8))
    X, W = on_device(x, w)
    expected = convolution.forward(
        *(np.ascontiguousarray(a) for a in (x.T, w.T)),
        stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1,
    ) if x.T.shape[1] == w.T.shape[1] else None  # fmt: skip
    found = kernels.forward(
        X.T, W.T, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1
    )
    agrees(found, expected, "float64", size=50)


def test_the_same_in_every_schedule(schedule, exact_allocations, rng):
    """Threads and blocks in any order, every array at a guard page."""
    for name in ("stride and dilation", "depthwise", "more pixels than a chunk"):
        Layer(rng, **LAYERS[name]).check("float32")


def test_what_has_no_kernel_is_left_to_the_reference(rng):
    options = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    x, w = on_device(rng.normal(size=(1, 2, 4, 4)), rng.normal(size=(3, 2, 2, 2)))
    assert kernels.forward(x.astype("int64"), w.astype("int64"), **options) is None
    assert kernels.forward(x, w.astype("float32"), **options) is None
    assert kernels.forward(x, w, **{**options, "groups": 2}) is None
    assert kernels.forward(rng.normal(size=(1, 2, 4, 4)), w, **options) is None


def test_sums_of_weights_do_not_depend_on_the_device(rng):
    """The chunks of a sum follow from shapes: pixels, and weights by 64 times 64."""
    layer = kernels._forward_layer((64, 6, 12, 12), (16, 6, 5, 5), (1, 1), ((0, 0),) * 2, (1, 1), 1)
    chunk, chunks = kernels._chunks(layer, 150)
    assert chunk % 16 == 0 and (chunks - 1) * chunk < 64 * 8 * 8 <= chunks * chunk
    assert chunks == 8


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("const int r = row + k.middle * p.rows.reach", "const int r = row + k.middle"),
        ("if (middle >= middles) middle -= middles, ++high;", ""),
        ("p.rows.place + at.middle * p.rows.spread", "at.middle * p.rows.spread"),
        ("begin + chunk < all ? begin + chunk : all", "begin + chunk"),
        ("    __syncthreads();\n    if (step + 1 < steps) {", "    if (step + 1 < steps) {"),
    ],
)
def test_a_broken_kernel_is_noticed(right, wrong, rng, host_device):
    layers = [
        Layer(rng, **LAYERS[name])
        for name in (
            "stride and dilation",
            "more pixels than a chunk",
            "strides that leave pixels out",
        )
    ]
    wrong_or_out_of_bounds = (AssertionError, RuntimeError)
    with (
        broken("convolution.cu", right, wrong, kernels._kernel),
        pytest.raises(wrong_or_out_of_bounds),
    ):
        for layer in layers:
            layer.check("float32")


def test_results_may_go_to_other_threads(rng):
    """What a broken kernel is told from: one that is right in another way."""
    right = "constexpr int RUN = PER_THREAD < 4 ? PER_THREAD : 4;"
    with broken("convolution.cu", right, "constexpr int RUN = 1;", kernels._kernel):
        Layer(rng, **LAYERS["more channels than a tile"]).check("float32")


# ---- through the engine


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_gradients(groups, rng):
    x, w = rng.normal(size=(2, 4, 6, 5)), rng.normal(size=(6, 4 // groups, 3, 2))
    found = {}
    for device in ("cpu", "cuda"):
        X, W = (gg.tensor(v, device=device, requires_grad=True) for v in (x, w))
        y = F.conv2d(X, W, stride=(2, 1), padding=1, groups=groups)
        gx, gw = gg.autograd.grad((y * y * y).sum(), (X, W), create_graph=True)
        second = gg.autograd.grad((gx * gx).sum() + (gw * gw * gw).sum(), (X, W))
        found[device] = [t.detach().cpu().numpy() for t in (y, gx, gw, *second)]
    for a, b in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize(
    "build",
    [
        lambda lib: lib.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        lambda lib: lib.nn.Conv1d(4, 5, 3, dilation=2),
        lambda lib: lib.nn.Conv2d(4, 8, 1),
    ],
)
def test_layers_equal_torch(build, torch, rng):
    gg.manual_seed(0)
    layer = build(gg).to("cuda")
    judge = build(torch)
    judge.load_state_dict({k: torch.tensor(v.cpu().numpy()) for k, v in layer.state_dict().items()})
    x = rng.normal(size=(3, 4, 9, 8) if judge.weight.ndim == 4 else (3, 4, 9)).astype("float32")
    X = gg.tensor(x, device="cuda", requires_grad=True)
    T = torch.tensor(x, requires_grad=True)
    y, z = layer(X), judge(T)
    (y * y).sum().backward()
    (z * z).sum().backward()
    ours = [y, X.grad, layer.weight.grad, layer.bias.grad]
    theirs = [z, T.grad, judge.weight.grad, judge.bias.grad]
    for a, b in zip(ours, theirs, strict=True):
        b = b.detach().numpy()
        np.testing.assert_allclose(
            a.detach().cpu().numpy(), b, rtol=1e-4, atol=1e-5 * np.abs(b).max()
        )


def test_no_hidden_traffic(no_hidden_traffic, rng):
    layer = Layer(rng, **LAYERS["stride 2"])
    operands = on_device(*layer.operands("float32"))
    step = [REGISTRY["conv"], REGISTRY["conv_input"], REGISTRY["conv_weight"]]

    def run():
        x, w, g = operands
        step[0](x, w, **layer.options)
        step[1](g, w, shape=x.shape, **layer.options)
        step[2](g, x, shape=w.shape, **layer.options)

    run()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        run()


def test_dtype_of_results_is_that_of_the_operands():
    assert dtype_named("bfloat16").name in kernels.FLOATS
