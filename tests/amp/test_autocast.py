"""autocast beside torch's on the CPU, operation by operation; CUDA lists beside torch's header."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad import nn
from gpugrad.autocasting import TABLES
from gpugrad.utils.checkpoint import checkpoint

pytest.importorskip("ml_dtypes")

NAMES = (
    "exp expm1 log log2 log10 log1p sqrt rsqrt reciprocal sin cos tan tanh sinh cosh acos asin "
    "atan sigmoid erf abs relu square neg exp2 round floor sign sum prod mean var std norm "
    "amax trace triu"
)


def one(name):
    return lambda lib, F, a: getattr(lib, name)(a)


CALLS = {
    **{name: one(name) for name in NAMES.split()},
    "matmul": lambda lib, F, a: a @ a,
    "mm": lambda lib, F, a: lib.mm(a, a),
    "mv": lambda lib, F, a: lib.mv(a, a[0]),
    "dot": lambda lib, F, a: lib.dot(a[0], a[0]),
    "bmm": lambda lib, F, a: lib.bmm(a.reshape(1, 4, 4), a.reshape(1, 4, 4)),
    "addmm": lambda lib, F, a: lib.addmm(a, a, a),
    "linear": lambda lib, F, a: F.linear(a, a, a[0]),
    "einsum": lambda lib, F, a: lib.einsum("ij,jk->ik", a, a),
    "tensordot": lambda lib, F, a: lib.tensordot(a, a, 1),
    "outer": lambda lib, F, a: lib.outer(a[0], a[0]),
    "conv2d": lambda lib, F, a: F.conv2d(a.reshape(1, 1, 4, 4), a[:2, :2].reshape(1, 1, 2, 2)),
    "conv1d": lambda lib, F, a: F.conv1d(a.reshape(1, 4, 4), a[:3].reshape(1, 4, 3)),
    "conv_transpose2d": lambda lib, F, a: F.conv_transpose2d(
        a.reshape(1, 1, 4, 4), a[:2, :2].reshape(1, 1, 2, 2)
    ),
    "attention": lambda lib, F, a: F.scaled_dot_product_attention(
        *[a.reshape(1, 1, 4, 4) for _ in range(3)]
    ),
    "pow": lambda lib, F, a: a**2.5,
    "power": lambda lib, F, a: 2.0**a,
    "cumsum": lambda lib, F, a: a.cumsum(0),
    "logsumexp": lambda lib, F, a: a.logsumexp(0),
    "softmax": lambda lib, F, a: a.softmax(0),
    "log_softmax": lambda lib, F, a: a.log_softmax(0),
    "softplus": lambda lib, F, a: F.softplus(a),
    "layer_norm": lambda lib, F, a: F.layer_norm(a, (4,)),
    "group_norm": lambda lib, F, a: F.group_norm(a.reshape(1, 4, 4), 2),
    "batch_norm": lambda lib, F, a: F.batch_norm(a, None, None, training=True),
    "normalize": lambda lib, F, a: F.normalize(a),
    "cosine_similarity": lambda lib, F, a: F.cosine_similarity(a, a * a),
    "mse_loss": lambda lib, F, a: F.mse_loss(a, a * 2),
    "l1_loss": lambda lib, F, a: F.l1_loss(a, a * 2),
    "smooth_l1_loss": lambda lib, F, a: F.smooth_l1_loss(a, a * 2),
    "huber_loss": lambda lib, F, a: F.huber_loss(a, a * 2),
    "kl_div": lambda lib, F, a: F.kl_div(a, a * 2, reduction="batchmean"),
    "bce": lambda lib, F, a: F.binary_cross_entropy(a.sigmoid(), a.detach().sigmoid()),
    "bce_with_logits": lambda lib, F, a: F.binary_cross_entropy_with_logits(a, a.detach()),
    "cross_entropy": lambda lib, F, a: F.cross_entropy(
        a, lib.tensor([0, 1, 2, 3], device=a.device)
    ),
    "nll_loss": lambda lib, F, a: F.nll_loss(a, lib.tensor([0, 1, 2, 3], device=a.device)),
    "cat": lambda lib, F, a: lib.cat([a, a]),
    "stack": lambda lib, F, a: lib.stack([a, a]),
    "cat of two dtypes": lambda lib, F, a: lib.cat([a, a.float()]),
    "add": lambda lib, F, a: a + a,
    "add of two dtypes": lambda lib, F, a: a + a.float(),
    "addcmul": lambda lib, F, a: lib.addcmul(a, a, a),
    "addcdiv": lambda lib, F, a: lib.addcdiv(a, a, a),
    "atan2": lambda lib, F, a: lib.atan2(a, a * 2),
    "gelu": lambda lib, F, a: F.gelu(a),
    "silu": lambda lib, F, a: F.silu(a),
    "max_pool2d": lambda lib, F, a: F.max_pool2d(a.reshape(1, 4, 4), 2),
    "avg_pool2d": lambda lib, F, a: F.avg_pool2d(a.reshape(1, 4, 4), 2),
    "where": lambda lib, F, a: lib.where(a > 0.5, a, a * 2),
    "maximum": lambda lib, F, a: lib.maximum(a, a * 2),
    "index": lambda lib, F, a: a[lib.tensor([0, 2])],
    "product of products": lambda lib, F, a: lib.relu(a @ a).sum(0) @ a,
}
VALUES = np.random.default_rng(0).uniform(0.1, 0.9, (4, 4)).astype(np.float32)
DTYPES = ("float32", "bfloat16", "float16", "float64")


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("lower", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CALLS)
def test_dtypes_are_torchs_on_the_cpu(torch, name, lower):
    call = CALLS[name]
    for dtype in DTYPES:
        if name in ("cat", "stack", "cat of two dtypes") and {lower, dtype} == {
            "bfloat16",
            "float16",
        }:
            continue  # an error in torch, float32 here
        if (name, dtype) == ("trace", "float16"):
            continue
        a = gg.tensor(VALUES).to(getattr(gg, dtype)).requires_grad_()
        b = torch.tensor(VALUES).to(getattr(torch, dtype)).requires_grad_()
        try:
            with torch.autocast("cpu", getattr(torch, lower)):
                v = call(torch, torch.nn.functional, b)
        except RuntimeError:  # kernels that torch lacks for float16 on the CPU
            continue
        with gg.autocast("cpu", getattr(gg, lower)):
            y = call(gg, F, a)
        assert name_of(y.dtype) == name_of(v.dtype), (name, dtype)
        if not v.requires_grad:
            continue
        g = np.random.default_rng(1).normal(size=tuple(v.shape)).astype(np.float32)
        y.backward(gg.tensor(g).to(y.dtype))
        v.backward(torch.tensor(g).to(v.dtype))
        assert name_of(a.grad.dtype) == name_of(b.grad.dtype) == dtype
        tolerance = 1e-5 if dtype in ("float32", "float64") == name_of(y.dtype) else 0.05
        scale = float(v.detach().abs().max())
        np.testing.assert_allclose(
            y.detach().double().numpy(), v.detach().double().numpy(), tolerance, tolerance * scale
        )
        scale = float(b.grad.abs().max())
        tolerance = 0.5 if name == "cosine_similarity" else 0.1  # differences of large terms
        np.testing.assert_allclose(
            a.grad.double().numpy(), b.grad.double().numpy(), 0.1, tolerance * scale + 1e-6
        )


def test_cuda_lists_are_torchs(torch):
    """Every name of the macros in torch's header that is a function here has the same policy."""
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    text = header.read_text()
    policies = {
        "LOWER_PRECISION_FP": "lower",
        "FP32": "float32",
        "FP32_SET_OPT_DTYPE": "float32",
        "PROMOTE": "promote",
    }
    expected = {"norm": "float32", "cat": "promote", "stack": "promote"}  # stated apart
    expected |= {"binary_cross_entropy": "banned"}
    for macro, policy in policies.items():
        body = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)*.*)\n", text)[1]
        for name in re.findall(r"_\((?:ADD_NS\()?(\w+)", body):
            if hasattr(gg, name) or hasattr(F, name):
                expected[name] = policy
    ours = dict(TABLES["cuda"])
    # compositions in torch, of functions in the lists
    for name, policy in {"square": "float32", "cross_entropy": "float32"}.items():
        assert ours.pop(name) == policy
    assert ours.pop("index_put") == "promote" and expected.pop("index_put", "promote") == "promote"
    assert {n: p for n, p in ours.items() if n != "bmm"} == {
        n: p for n, p in expected.items() if n != "bmm"
    }


def test_nested_contexts():
    a = gg.ones(2, 2)
    with gg.autocast("cpu"):
        assert (a @ a).dtype == gg.bfloat16
        with gg.autocast("cpu", dtype=gg.float16):
            assert (a @ a).dtype == gg.float16
            with gg.autocast("cpu", enabled=False):
                assert (a @ a).dtype == gg.float32 and not gg.is_autocast_enabled("cpu")
            assert gg.get_autocast_dtype("cpu") == gg.float16
        assert (a @ a).dtype == gg.bfloat16 and gg.is_autocast_enabled("cpu")
    assert (a @ a).dtype == gg.float32 and not gg.is_autocast_enabled("cpu")


def test_decorator_and_error_inside():
    @gg.autocast("cpu")
    def product(a):
        """Doc."""
        return a @ a

    assert product.__doc__ == "Doc." and product(gg.ones(2, 2)).dtype == gg.bfloat16
    with pytest.raises(ZeroDivisionError), gg.autocast("cpu"):
        1 / 0
    assert (gg.ones(2, 2) @ gg.ones(2, 2)).dtype == gg.float32


def test_other_threads_are_not_in_it():
    found = []

    def work():
        found.append((gg.ones(2, 2) @ gg.ones(2, 2)).dtype)
        with gg.autocast("cpu", dtype=gg.float16):
            found.append((gg.ones(2, 2) @ gg.ones(2, 2)).dtype)

    with gg.autocast("cpu"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert (gg.ones(2, 2) @ gg.ones(2, 2)).dtype == gg.bfloat16
    assert found == [gg.float32, gg.float16]


def count_casts(monkeypatch):
    from gpugrad.ops import shape

    made, evaluate = [], shape.cast.eval
    monkeypatch.setattr(
        shape.cast, "eval", lambda x, *, dtype: made.append(x.shape) or evaluate(x, dtype=dtype)
    )
    return made


def test_parameters_are_cast_once(monkeypatch):
    layer, x = nn.Linear(3, 4, bias=False), gg.ones(2, 3)
    made = count_casts(monkeypatch)
    with gg.autocast("cpu"):
        y = layer(x) + layer(x)
        assert made.count((4, 3)) == 1
    made.clear()
    with gg.autocast("cpu", cache_enabled=False):
        layer(x), layer(x)
        assert made.count((4, 3)) == 2
    y.float().sum().backward()
    assert layer.weight.grad.dtype == gg.float32 and layer.weight.grad.tolist() == [[4.0] * 3] * 4


def test_a_parameter_that_changes_is_cast_anew():
    """torch's cache goes on with the old value."""
    layer, x = nn.Linear(3, 1, bias=False), gg.ones(1, 3)
    with gg.autocast("cpu"), gg.no_grad():
        layer(x)
        layer.weight.fill_(2.0)
        assert layer(x).item() == 6.0
        layer.weight.data = gg.ones(1, 3)
        assert layer(x).item() == 3.0


def test_without_gradients_first():
    """A cast made without recording is not used where one is asked for."""
    layer, x = nn.Linear(3, 1), gg.ones(1, 3)
    with gg.autocast("cpu"):
        with gg.no_grad():
            layer(x)
        layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_double_backward_inside():
    w = gg.tensor([[0.5, 2.0]], requires_grad=True)
    with gg.autocast("cpu"):
        y = (gg.tensor([[1.0, 3.0]]) @ w.T).exp().sum()
        (g,) = gg.autograd.grad(y, w, create_graph=True)
        assert g.dtype == gg.float32
        (h,) = gg.autograd.grad(g.sum(), w)
    assert h.dtype == gg.float32 and h.isfinite().all()


def test_checkpoint_runs_again_as_the_first_time():
    layer, x = nn.Linear(3, 4), gg.ones(2, 3, requires_grad=True)
    seen = []

    def part(x):
        y = layer(x)
        seen.append(y.dtype)
        return y

    with gg.autocast("cpu"):
        layer(x)  # its weight is cast outside
        y = checkpoint(part, x)
    y.float().sum().backward()
    assert seen == [gg.bfloat16, gg.bfloat16] and layer.weight.grad.dtype == gg.float32


def test_custom_functions():
    class Product(gg.autograd.Function):
        @staticmethod
        @gg.amp.custom_fwd(device_type="cpu")
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        @gg.amp.custom_bwd(device_type="cpu")
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            seen.append((g @ b.T).dtype)
            return g.float() @ b.T, a.T @ g.float()

    class Wide(gg.autograd.Function):
        @staticmethod
        @gg.amp.custom_fwd(device_type="cpu", cast_inputs=gg.float32)
        def forward(ctx, a):
            seen.append((a.dtype, (a @ a).dtype))
            return a @ a

        @staticmethod
        @gg.amp.custom_bwd(device_type="cpu")
        def backward(ctx, g):
            return g

    seen: list = []
    a = gg.ones(2, 2, requires_grad=True)
    with gg.autocast("cpu"):
        y = Product.apply(a, a)
        assert y.dtype == gg.bfloat16
        assert Wide.apply(a.bfloat16()).dtype == gg.float32
    y.float().sum().backward()
    assert seen == [(gg.float32, gg.float32), gg.bfloat16]


def test_settings_and_errors():
    assert gg.get_autocast_dtype("cpu") == gg.bfloat16
    assert gg.get_autocast_dtype("cuda") == gg.float16
    gg.set_autocast_dtype("cpu", gg.float16)
    try:
        with gg.autocast("cpu"):
            assert (gg.ones(2, 2) @ gg.ones(2, 2)).dtype == gg.float16
    finally:
        gg.set_autocast_dtype("cpu", gg.bfloat16)
    with pytest.raises(RuntimeError, match="unsupported autocast device_type"):
        gg.autocast("xpu")
    with pytest.raises(ValueError, match="Expected `device_type` of type `str`"):
        gg.autocast(gg.device("cpu"))
    with pytest.warns(UserWarning, match="not supported"):
        context = gg.autocast("cpu", dtype=gg.float64)
    with context:
        assert (gg.ones(2, 2) @ gg.ones(2, 2)).dtype == gg.float32
    if not gg.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            gg.autocast("cuda")


def test_contexts_may_be_entered_twice():
    context = gg.autocast("cpu")
    with context, context:
        assert gg.is_autocast_enabled("cpu")
    assert not gg.is_autocast_enabled("cpu")


def test_a_convolutional_network_trains_like_torchs(torch):
    """Same weights, same data: the losses stay within bfloat16's rounding."""
    gg.manual_seed(0)

    def build(nn):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(36, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3),
        )  # fmt: skip

    ours, theirs = build(nn), build(torch.nn)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 1, 8, 8)).astype(np.float32)
    t = rng.integers(0, 3, 16)
    losses = []
    for lib, F_, model in ((gg, F, ours), (torch, torch.nn.functional, theirs)):
        optimizer = lib.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        images, labels, history = lib.tensor(x), lib.tensor(t), []
        for _ in range(15):
            optimizer.zero_grad()
            with lib.autocast("cpu", dtype=lib.bfloat16):
                out = model(images)
                loss = F_.cross_entropy(out, labels)
            assert name_of(out.dtype) == "bfloat16" and name_of(loss.dtype) == "float32"
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1, atol=0.03)
    assert losses[0][-1] < 0.3 * losses[0][0]
