"""Transformations of functions, against torch.func: alone, nested, over pytrees."""

import numpy as np
import pytest

import gpugrad as gg

# torch compiles its rules of forward mode with it
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

R = np.random.default_rng(2)
X, Y, A = R.standard_normal(4), R.standard_normal(4), R.standard_normal((3, 4))


def scalar(t):
    return lambda x: (x.sin() * x.exp()).sum() + x[0] * x[1] ** 2


def vector(t):
    return lambda x: t.cat([(x * x)[:2], x.sum().reshape(1), t.tanh(x[1:] * x[:-1])])


def matrix(t):
    return lambda a: t.softmax(a @ a.T, 1) @ a


CASES = {
    "grad": lambda t, f, x: f.grad(scalar(t))(x),
    "grad of grad": lambda t, f, x: f.grad(lambda v: f.grad(scalar(t))(v).square().sum())(x),
    "third derivative": lambda t, f, x: f.grad(f.grad(f.grad(lambda v: v.sin() * v**3)))(x[0]),
    "grad, argnums": lambda t, f, x: f.grad(lambda a, b: (a * b.sin()).sum(), argnums=1)(x, x + 1),
    "grad, several argnums": lambda t, f, x: f.grad(
        lambda a, b, c: (a * b.sin() * c).sum(), argnums=(0, 2))(x, x + 1, x * 2),
    "grad, negative argnums": lambda t, f, x: f.grad(
        lambda a, b: (a * b.sin()).sum(), argnums=-1)(x, x + 1),
    "grad, has_aux": lambda t, f, x: f.grad(lambda v: ((v * v).sum(), v * 3), has_aux=True)(x),
    "grad of a dict": lambda t, f, x: sorted(f.grad(
        lambda p: (p["w"] * 2 + p["b"].sum()).sum())({"w": x, "b": x[:2]}).items()),
    "grad of nested lists": lambda t, f, x: f.grad(
        lambda p: (p[0] * p[1][0]).sum())([x, (x * 2,)]),
    "grad of a constant": lambda t, f, x: f.grad(lambda v: (x * 2).sum() + 0 * v.sum())(x),
    "grad with respect to one of two": lambda t, f, x: f.grad(
        lambda a: f.grad(lambda b: (a * b * b).sum())(a).sum())(x),
    "vjp": lambda t, f, x: vjp_of(f, vector(t), x),
    "vjp of two": lambda t, f, x: vjp_of(f, lambda a: (a.sin(), a * 2), x),
    "jvp": lambda t, f, x: f.jvp(vector(t), (x,), (x.cos(),)),
    "jvp of two arguments": lambda t, f, x: f.jvp(lambda a, b: a * b.exp(), (x, x), (x, x * 2)),
    "jvp, has_aux": lambda t, f, x: f.jvp(lambda a: (a.sin(), a * 2), (x,), (x,), has_aux=True),
    "jvp of jvp": lambda t, f, x: f.jvp(
        lambda v: f.jvp(scalar(t), (v,), (v.sin(),))[1], (x,), (x,)),
    "jvp of a dict": lambda t, f, x: f.jvp(
        lambda p: p["a"] * p["b"], ({"a": x, "b": x.exp()},), ({"a": x, "b": x},)),
    "jacrev": lambda t, f, x: f.jacrev(vector(t))(x),
    "jacfwd": lambda t, f, x: f.jacfwd(vector(t))(x),
    "jacrev of jacrev": lambda t, f, x: f.jacrev(f.jacrev(vector(t)))(x),
    "jacfwd of jacfwd": lambda t, f, x: f.jacfwd(f.jacfwd(vector(t)))(x),
    "jacrev of jacfwd": lambda t, f, x: f.jacrev(f.jacfwd(vector(t)))(x),
    "jacfwd of jacrev": lambda t, f, x: f.jacfwd(f.jacrev(vector(t)))(x),
    "jacrev, argnums": lambda t, f, x: f.jacrev(lambda a, b: a * b.exp(), argnums=1)(x, x * 2),
    "hessian": lambda t, f, x: f.hessian(scalar(t))(x),
    "hessian, argnums": lambda t, f, x: f.hessian(
        lambda a, b: (a * b**3).sum(), argnums=1)(x, x * 2),
    "jvp of grad": lambda t, f, x: f.jvp(f.grad(scalar(t)), (x,), (x.cos(),)),
    "grad of jvp of grad": lambda t, f, x: f.grad(
        lambda v: f.jvp(f.grad(scalar(t)), (v,), (x.cos(),))[1].square().sum())(x),
    "jacrev of hvp": lambda t, f, x: f.jacrev(
        lambda v: f.jvp(f.grad(scalar(t)), (v,), (v * v,))[1])(x),
    "jvp of a view": lambda t, f, x: f.jvp(lambda v: v.view(2, 2) * v[0], (x,), (x.cos(),)),
    "grad of jvp": lambda t, f, x: f.grad(lambda v: f.jvp(vector(t), (v,), (v,))[1].sum())(x),
    "grad of vjp": lambda t, f, x: f.grad(
        lambda v: vjp_of(f, vector(t), v)[1][0].square().sum())(x),
}  # fmt: skip


def vjp_of(f, function, x):
    value, pullback = f.vjp(function, x)
    seed = tuple(v.cos() for v in value) if isinstance(value, tuple) else value.cos()
    return value, pullback(seed)


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(judge, torch, name):
    libraries = ((gg, gg.func), (torch, torch.func))
    judge(lambda pair, x: CASES[name](*pair, x), X, libraries=libraries, gradient=False, rtol=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "exp", "exp2", "expm1", "sqrt", "rsqrt", "reciprocal", "tanh", "sigmoid", "tan", "log",
        "sin", "square", "softmax", "logsumexp", "cumsum", "prod", "relu", "atan", "erf", "std",
        "norm", "acosh", "log1p", "lerp", "hypot", "atan2", "pow", "div", "logaddexp", "amax",
        "log_softmax",
    ],
)  # fmt: skip
def test_second_derivatives_by_every_pair_of_modes(name):
    """Derivatives that read their output, their input, both: forward over reverse is the pair that
    needs tangents of saved outputs."""
    along = {"softmax", "log_softmax", "logsumexp", "cumsum"}
    two = {"lerp", "hypot", "atan2", "pow", "div", "logaddexp"}

    def f(x):
        function = getattr(gg, name)
        if name == "lerp":
            y = function(x, x.sin(), x.cos())
        elif name in two:
            y = function(x, x.sin() + 2)
        else:
            y = function(x, 0) if name in along else function(x)
        return (y * (x * x + 1)).sum()

    x = gg.tensor([1.1, 1.7, 1.4], dtype=gg.float64)
    reverse, forward = gg.func.jacrev, gg.func.jacfwd
    expected = np.empty((3, 3))
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-6
        above, below = (gg.func.grad(f)(x + gg.tensor(s)).numpy() for s in (step, -step))
        expected[i] = (above - below) / 2e-6
    for outer in (reverse, forward):
        for inner in (reverse, forward):
            found = outer(inner(f))(x).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    _, product = gg.func.hvp(f, (x,), (gg.ones(3, dtype=gg.float64),))
    np.testing.assert_allclose(product.numpy(), expected.sum(1), rtol=1e-6, atol=1e-6)


MATRIX_CASES = {
    "jacrev of a matrix": lambda t, f, a: f.jacrev(matrix(t))(a),
    "jacfwd of a matrix": lambda t, f, a: f.jacfwd(matrix(t))(a),
    "hessian of a matrix": lambda t, f, a: f.hessian(lambda v: matrix(t)(v).square().sum())(a),
}


@pytest.mark.parametrize("name", MATRIX_CASES)
def test_matrices_equal_torch(judge, torch, name):
    libraries = ((gg, gg.func), (torch, torch.func))
    judge(
        lambda pair, a: MATRIX_CASES[name](*pair, a),
        A,
        libraries=libraries,
        gradient=False,
        rtol=1e-9,
        atol=1e-11,
    )


def test_forward_and_reverse_agree():
    x, f = gg.tensor(X), vector(gg)
    reverse, forward = gg.func.jacrev(f)(x).numpy(), gg.func.jacfwd(f)(x).numpy()
    np.testing.assert_allclose(reverse, forward, rtol=1e-12, atol=1e-14)


def test_hvp_is_the_hessian_times_a_vector():
    x, v = gg.tensor(X), gg.tensor(Y)
    value, product = gg.func.hvp(scalar(gg), (x,), (v,))
    expected = gg.func.hessian(scalar(gg))(x) @ v
    np.testing.assert_allclose(product.numpy(), expected.numpy(), rtol=1e-10)
    assert value.item() == pytest.approx(scalar(gg)(x).item())


def test_value_and_grad():
    x = gg.tensor(X)
    value, g = gg.func.value_and_grad(scalar(gg))(x)
    assert value.item() == pytest.approx(scalar(gg)(x).item())
    assert g.tolist() == gg.func.grad(scalar(gg))(x).tolist()
    (value, aux), g = gg.func.value_and_grad(lambda v: (v.sum(), "aux"), has_aux=True)(x)
    assert aux == "aux"
    assert g.tolist() == [1.0] * 4


def test_keyword_arguments_are_constants():
    g = gg.func.grad(lambda x, *, k: (x * k).sum())(gg.ones(2), k=3.0)
    assert g.tolist() == [3.0, 3.0]


def test_vjp_may_be_called_repeatedly():
    _, pullback = gg.func.vjp(lambda x: x**3, gg.tensor([2.0]))
    assert pullback(gg.tensor([1.0]))[0].item() == 12.0
    assert pullback(gg.tensor([2.0]))[0].item() == 24.0


def test_transformations_leave_their_arguments_alone():
    x = gg.tensor([1.0, 2.0], requires_grad=True)
    gg.func.grad(lambda v: (v * v).sum())(x)
    gg.func.jacrev(lambda v: v * v)(x)
    gg.func.hessian(lambda v: (v**3).sum())(x)
    gg.func.jvp(lambda v: v * v, (x,), (gg.ones(2),))
    assert x.grad is None
    assert x.is_leaf
    y = gg.ones(2)
    gg.func.grad(lambda v: (v * v).sum())(y)
    assert not y.requires_grad


def test_through_the_tape():
    """A transformation inside an ordinary program: its result has the outer history."""
    w = gg.tensor([1.0, 2.0], dtype=gg.float64, requires_grad=True)
    x = gg.tensor([0.5, 0.3], dtype=gg.float64)
    g = gg.func.grad(lambda v: (v * w).sin().sum())(x)  # w cos(v w)
    g.sum().backward()
    expected = np.cos(x.numpy() * [1, 2]) - np.array([1, 2]) * x.numpy() * np.sin(
        x.numpy() * [1, 2]
    )
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-12)


def test_results_of_constants_have_no_history():
    g = gg.func.grad(lambda v: (v * v).sum())(gg.ones(2))
    assert not g.requires_grad
    assert not gg.func.jacrev(lambda v: v * v)(gg.ones(2)).requires_grad


def test_perturbations_are_not_confused():
    """d/dx (x d/dy (x y)) = d/dx x**2 = 2x: in every combination of modes."""
    f = gg.func

    def forward(function, x):
        return f.jvp(function, (x,), (gg.ones_like(x),))[1]

    def reverse(function, x):
        return f.grad(function)(x)

    x = gg.tensor(3.0)
    for outer in (forward, reverse):
        for inner in (forward, reverse):
            found = outer(lambda a, inner=inner: a * inner(lambda b: a * b, a), x)
            assert found.item() == 6.0, (outer, inner)


def test_in_no_grad():
    with gg.no_grad():
        assert gg.func.grad(lambda v: (v * v).sum())(gg.ones(2)).tolist() == [2.0, 2.0]
        _, tangent = gg.func.jvp(gg.sin, (gg.zeros(1),), (gg.ones(1),))
        assert tangent.tolist() == [1.0]
        assert not gg.is_grad_enabled()


ERRORS = {
    "grad of a vector": lambda t, f, x: f.grad(lambda v: v * 2)(x),
    "grad of a number": lambda t, f, x: f.grad(lambda v: 2.0)(x),
    "vjp, wrong shape": lambda t, f, x: f.vjp(lambda v: v * 2, x)[1](x[:2]),
    "vjp, too many": lambda t, f, x: f.vjp(lambda v: v * 2, x)[1]((x, x)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_have_the_classes_of_torch(judge, torch, name):
    libraries = ((gg, gg.func), (torch, torch.func))
    judge.same_error(lambda pair, x: ERRORS[name](*pair, x), X, libraries=libraries)


def test_jvp_needs_as_many_tangents():
    with pytest.raises((ValueError, RuntimeError)):
        gg.func.jvp(lambda a, b: a * b, (gg.ones(1), gg.ones(1)), (gg.ones(1),))


def test_an_exception_leaves_forward_mode():
    def fail(v):
        raise KeyError

    with pytest.raises(KeyError):
        gg.func.jvp(fail, (gg.ones(1),), (gg.ones(1),))
    x = gg.ones(2, requires_grad=True)
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_in_place_writes_inside_a_transformation():
    def f(x):
        y = x * 2
        y[0] = x[1] * x[1]
        y += 1
        return (y * y).sum()

    x = gg.tensor([1.0, 3.0])  # (x1**2 + 1)**2 + (2 x1 + 1)**2
    assert gg.func.grad(f)(x).tolist() == [0.0, 4 * 3 * 10 + 4 * 7.0]


WRITES = {
    "setitem": lambda x, y: y.__setitem__(0, x[1]),
    "setitem, number": lambda x, y: y.__setitem__(0, 1.0),
    "setitem, mask": lambda x, y: y.__setitem__(y > 0, x[1]),
    "add_": lambda x, y: y.add_(x),
    "add_ number": lambda x, y: y.add_(1.0),
    "mul_": lambda x, y: y.mul_(2.0),
    "exp_": lambda x, y: y.exp_(),
    "copy_": lambda x, y: y.copy_(x),
    "zero_": lambda x, y: y.zero_(),
    "fill_": lambda x, y: y.fill_(3.0),
    "view": lambda x, y: y[:1].add_(x[1:]),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("target", ["dual", "constant"])
def test_in_place_writes_in_forward_mode_lose_no_tangent(name, target):
    """torch carries the tangent along; here a refusal, never a wrong derivative."""

    def f(x):
        y = x * 2 if target == "dual" else gg.ones(2)
        WRITES[name](x, y)
        return y

    takes_x = name in ("setitem", "setitem, mask", "add_", "copy_", "view")
    x, v = gg.tensor([1.0, 3.0]), gg.ones(2)
    if target == "dual" or takes_x:
        with pytest.raises(RuntimeError, match="forward mode"):
            gg.func.jvp(f, (x,), (v,))
    else:
        assert gg.func.jvp(f, (x,), (v,))[1].tolist() == [0.0, 0.0]


def test_batch_norm_in_training_in_forward_mode():
    """It updates its running statistics in place: they are no part of the derivative."""
    norm = gg.nn.BatchNorm1d(3)
    x, v = gg.tensor(R.standard_normal((5, 3))).float(), gg.tensor(R.standard_normal((5, 3)))
    _, tangent = gg.func.jvp(norm, (x,), (v.float(),))
    jacobian = gg.func.jacrev(norm)(x).detach().numpy()
    expected = np.einsum("ijkl,kl->ij", jacobian, v.numpy())
    np.testing.assert_allclose(tangent.detach().numpy(), expected, rtol=1e-3, atol=1e-4)


def test_aux_carries_nothing_of_the_transformation():
    _, aux = gg.func.grad(lambda v: ((v * v).sum(), {"twice": v * 2}), has_aux=True)(gg.ones(2))
    assert not aux["twice"].requires_grad
    _, _, aux = gg.func.jvp(lambda v: (v, [v * 2]), (gg.ones(2),), (gg.ones(2),), has_aux=True)
    assert type(aux[0]) is gg.Tensor
    _, _, aux = gg.func.vjp(lambda v: (v * 1, v * 2), gg.ones(2), has_aux=True)
    assert not aux.requires_grad


# ------------------------------------------------------------------------------------------------
# functional_call


class Tied(gg.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = gg.nn.Linear(3, 3)
        self.b = gg.nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.norm = gg.nn.BatchNorm1d(3)

    def forward(self, x, scale=1.0):
        return self.norm(self.b(self.a(x).tanh())) * scale


def test_functional_call_is_a_call_with_other_parameters():
    module, other = Tied().double(), Tied().double()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    weights = {name: p.detach().clone() for name, p in other.named_parameters()}
    buffers = {name: b.clone() for name, b in other.named_buffers()}
    x = gg.randn(5, 3, dtype=gg.float64)
    found = gg.func.functional_call(module, (weights, buffers), x, {"scale": 2.0}, strict=True)
    gg.testing.assert_close(found, other(x, scale=2.0), rtol=0, atol=0)
    for name, t in module.state_dict().items():
        gg.testing.assert_close(t, before[name], rtol=0, atol=0)
    for name, b in other.named_buffers():
        gg.testing.assert_close(buffers[name], b, rtol=0, atol=0)
    assert module.b.weight is module.a.weight


@pytest.mark.parametrize("tied", [True, False])
def test_functional_call_and_shared_parameters(tied):
    module = Tied().double().eval()
    x, w = gg.randn(5, 3, dtype=gg.float64), gg.randn(3, 3, dtype=gg.float64)
    found = gg.func.functional_call(module, {"a.weight": w}, (x,), tie_weights=tied)
    second = w if tied else module.b.weight
    hidden = gg.functional.linear(x, w, module.a.bias).tanh()
    expected = module.norm(gg.functional.linear(hidden, second, module.b.bias))
    gg.testing.assert_close(found, expected)


def test_functional_call_with_vmap_and_grad():
    """Gradients of each sample, and models in a batch."""
    layer = gg.nn.Linear(3, 1).double()
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    x = gg.randn(4, 3, dtype=gg.float64)
    loss = lambda weights, x: gg.func.functional_call(layer, weights, (x,)).square().sum()
    each = gg.vmap(gg.func.grad(loss), in_dims=(None, 0))(weights, x)
    for k in range(4):
        layer.zero_grad()
        layer(x[k]).square().sum().backward()
        gg.testing.assert_close(each["weight"][k], layer.weight.grad)
        gg.testing.assert_close(each["bias"][k], layer.bias.grad)


def test_functional_call_of_and_in_compiled_functions():
    layer, x = gg.nn.Linear(3, 2).double(), gg.randn(4, 3, dtype=gg.float64)
    call = lambda weights, x: gg.func.functional_call(layer, weights, (x,))
    inside, module = gg.compile(call), gg.compile(layer)
    for _ in range(6):
        weights = {"weight": gg.randn(2, 3, dtype=gg.float64)}
        expected = gg.functional.linear(x, weights["weight"], layer.bias)
        gg.testing.assert_close(inside(weights, x), expected)
        gg.testing.assert_close(gg.func.functional_call(module, weights, (x,)), expected)
        gg.testing.assert_close(module(x), layer(x))
    assert inside.stats["replays"] == 4


def test_functional_call_errors():
    layer, x = gg.nn.Linear(3, 2), gg.randn(4, 3)
    weight = gg.zeros(2, 3)
    with pytest.raises(RuntimeError, match=r"Linear has no \['weigth'\]"):
        gg.func.functional_call(layer, {"weigth": weight}, (x,))
    with pytest.raises(RuntimeError, match=r"\['bias'\] of Linear are missing"):
        gg.func.functional_call(layer, {"weight": weight}, (x,), strict=True)
    with pytest.raises(ValueError, match="in two of the dictionaries"):
        gg.func.functional_call(layer, ({"weight": weight}, {"weight": weight}), (x,))
    before = layer.weight
    with pytest.raises(RuntimeError):
        gg.func.functional_call(layer, {"weight": gg.zeros(2, 5)}, (x,))
    assert layer.weight is before
