"""Derivatives of derivatives of compiled calls: the function runs again as it was called."""

import pytest

import gpugrad as gg
from gpugrad import nn
from gpugrad.static import compose

ROWS, IN = 6, 4


def inputs() -> gg.Tensor:
    return gg.randn(ROWS, IN, dtype=gg.float64, requires_grad=True)


def warm(function):
    """The function compiled, and called until it replays."""
    compiled = gg.compile(function)
    for _ in range(5):
        compiled(inputs())
    assert isinstance(compiled(inputs()).grad_fn, compose.Replay)
    return compiled


def derivatives(y, x) -> list[gg.Tensor]:
    """The first derivative of a sum of squares, and one of that."""
    (first,) = gg.autograd.grad((y * y).sum(), x, create_graph=True)
    (second,) = gg.autograd.grad((first * first).sum(), x)
    return [first.detach(), second]


def assert_equal_to_eager(function, compiled, between=lambda: None, **state) -> None:
    """Both start with the same generator and state and must end with the same."""
    x, found = inputs(), []
    start = {name: t.clone() for name, t in state.items()}
    for f in (function, compiled):
        gg.manual_seed(7)
        for name, t in state.items():
            with gg.no_grad():
                t.copy_(start[name])
        y = f(x)
        between()
        values = derivatives(y, x)
        found.append([y.detach(), *values, gg.rand(3), *[t.clone() for t in state.values()]])
    for a, b in zip(*found, strict=True):
        gg.testing.assert_close(b, a, rtol=1e-11, atol=1e-13)


def test_dropout_draws_what_the_call_drew(tolerance):
    model = nn.Sequential(nn.Linear(IN, 8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 2)).double()
    assert_equal_to_eager(model, warm(model))


def test_noise_that_the_first_derivative_does_not_read(tolerance):
    function = lambda x: (x + gg.randn_like(x)).tanh()
    assert_equal_to_eager(function, warm(function), between=lambda: gg.rand(5))


def test_a_function_that_seeds(tolerance):
    def function(x):
        gg.manual_seed(3)
        return (x * gg.rand(IN, dtype=gg.float64)).exp()

    assert_equal_to_eager(function, warm(function))


def test_statistics_are_updated_once(tolerance):
    model = nn.Sequential(nn.Linear(IN, 8), nn.BatchNorm1d(8), nn.Tanh()).double()
    compiled = warm(model)
    buffers = {name.replace(".", "_"): b for name, b in model.named_buffers()}
    assert buffers
    assert_equal_to_eager(model, compiled, **buffers)


def test_state_that_the_results_depend_on(tolerance):
    """A later call writes it; the derivatives are those of the call they belong to."""
    state = gg.ones(IN, dtype=gg.float64)

    def function(x):
        state.mul_(1.5)
        return (x * state.clone()).sin()

    compiled = warm(function)
    other = inputs()
    assert_equal_to_eager(function, compiled, between=lambda: compiled(other), state=state)


def test_records_of_the_rerun_notice_that_the_state_goes_back(tolerance):
    """What they saved is not what is there after it."""
    state = gg.ones(IN, dtype=gg.float64)

    def function(x):
        state.mul_(1.5)
        return (x * state).sin()

    compiled, x = warm(function), inputs()
    y = compiled(x)
    with pytest.raises(gg.SavedTensorError):
        compiled(inputs())
        derivatives(y, x)


def test_a_write_to_what_only_the_function_reads_is_noticed(tolerance):
    """The first derivative of exp reads its result alone: eager mode needs ``shift`` no more."""
    shift = gg.zeros(IN, dtype=gg.float64)
    function = lambda x: (x + shift).exp()
    compiled, x = warm(function), inputs()
    y = compiled(x)
    (first,) = gg.autograd.grad(y.sum(), x, retain_graph=True)
    gg.testing.assert_close(first, y.detach())
    shift.add_(1)
    line = gg.autograd.grad(y.sum(), x, retain_graph=True)
    gg.testing.assert_close(line[0], y.detach())
    with pytest.raises(gg.SavedTensorError, match=r"written in place.*test_rerun\.py:\d+"):
        derivatives(y, x)


def test_another_mode_is_noticed(tolerance):
    model = nn.Sequential(nn.Linear(IN, 8), nn.Dropout(), nn.Tanh()).double()
    compiled, x = warm(model), inputs()
    y = compiled(x)
    model.eval()
    with pytest.raises(RuntimeError, match="cannot run again as it was called"):
        derivatives(y, x)
    model.train()
    derivatives(y, x)


def test_a_result_returned_twice(tolerance):
    """The second result is the first once more; the third has a number of its own."""

    def function(x):
        a = x.sin()
        return a, a, x.exp()

    compiled = gg.compile(function)
    x, found = inputs(), []
    for _ in range(5):
        compiled(inputs())
    assert compiled.stats["programs"] == 1
    for f in (function, compiled):
        a, b, c = f(x)
        assert a is b
        found.append(derivatives(a * c, x))
    for e, d in zip(*found, strict=True):
        gg.testing.assert_close(d, e, rtol=1e-11, atol=1e-13)


def test_gradients_that_the_function_leaves(tolerance):
    """They are those of the call, not of the rerun."""
    w = gg.ones(IN, dtype=gg.float64, requires_grad=True)

    def function(x):
        w.grad = None
        (w * 2).sum().backward()
        return (x * w.grad).exp()

    compiled, x = warm(function), inputs()
    y = compiled(x)
    w.grad = mine = gg.full((IN,), 5.0, dtype=gg.float64)
    expected = derivatives(function(x), x)
    w.grad = mine
    found = derivatives(y, x)
    assert w.grad is mine
    for e, d in zip(expected, found, strict=True):
        gg.testing.assert_close(d, e, rtol=1e-11, atol=1e-13)
