"""The contexts that switch recording: nested, as decorators, with exceptions."""

import pytest

import gpugrad as gg

X = gg.ones(2, requires_grad=True)


@pytest.fixture(autouse=True)
def restore():
    yield
    gg.set_grad_enabled(True)


def recorded():
    """Whether operations of every kind are recorded now."""
    results = {
        gg.is_grad_enabled(),
        (X * 2).requires_grad,
        X.sum().requires_grad,
        X.exp().requires_grad,
        (X @ X).requires_grad,
        X[0].requires_grad,
        X.reshape(1, 2).requires_grad,
        gg.where(X > 0, X, 0.0).requires_grad,
        gg.softmax(X, 0).requires_grad,
    }
    assert len(results) == 1
    return results.pop()


@pytest.mark.parametrize(
    "switch", [gg.no_grad, gg.inference_mode, lambda: gg.set_grad_enabled(False)]
)
def test_off_inside_and_on_after(switch):
    with switch():
        assert not recorded()
    assert recorded()


@pytest.mark.parametrize("switch", [gg.no_grad, gg.inference_mode])
def test_an_exception_restores(switch):
    with pytest.raises(KeyError), switch():
        raise KeyError
    assert recorded()


def test_nesting():
    with gg.no_grad():
        with gg.enable_grad():
            assert recorded()
            with gg.no_grad(), gg.no_grad():
                assert not recorded()
            assert recorded()
        assert not recorded()
    assert recorded()


def test_one_context_entered_twice():
    context = gg.no_grad()
    with context:
        with context:
            assert not recorded()
        assert not recorded()
    assert recorded()


def test_inference_mode_may_be_off():
    with gg.inference_mode(False):
        assert recorded()
    with gg.no_grad(), gg.inference_mode(mode=False):
        assert not recorded()


DECORATORS = {
    "@no_grad": lambda: gg.no_grad,
    "@no_grad()": gg.no_grad,
    "@inference_mode()": gg.inference_mode,
    "@set_grad_enabled(False)": lambda: gg.set_grad_enabled(False),
}


@pytest.mark.parametrize("name", DECORATORS)
def test_decorators(name):
    @DECORATORS[name]()
    def work(a, *, b):
        "Its docstring."
        if b > 3:
            raise ValueError
        return recorded(), a + b

    assert recorded()  # making a decorator switches nothing
    assert work(1, b=2) == (False, 3)
    assert work.__name__ == "work"
    assert work.__doc__ == "Its docstring."
    assert recorded()
    with pytest.raises(ValueError):
        work(1, b=4)
    assert recorded()


def test_enable_grad_decorates_too():
    @gg.enable_grad()
    def work():
        return recorded()

    with gg.no_grad():
        assert work()
        assert not recorded()


def test_a_decorated_recursion():
    @gg.no_grad()
    def descend(n):
        assert not recorded()
        return 0 if n == 0 else 1 + descend(n - 1)

    assert descend(5) == 5
    assert recorded()


def test_a_decorated_generator_is_off_in_every_step(torch):
    """torch switches recording off while the generator runs, and on while its caller does."""

    def steps(lib, x):
        @lib.no_grad()
        def generate():
            for _ in range(3):
                yield (x * 2).requires_grad

        found = []
        for step in generate():
            found.append((step, lib.is_grad_enabled()))
        return found

    assert steps(gg, X) == steps(torch, torch.ones(2, requires_grad=True))
    assert recorded()


def test_set_grad_enabled_as_a_function():
    gg.set_grad_enabled(False)
    try:
        assert not recorded()
        with gg.enable_grad():
            assert recorded()
        assert not recorded()
        with gg.set_grad_enabled(True):
            assert recorded()
        assert not recorded()
    finally:
        gg.set_grad_enabled(True)
    assert recorded()


def test_set_grad_enabled_inside_a_context_ends_with_it():
    with gg.no_grad():
        gg.set_grad_enabled(True)
        assert recorded()
    assert recorded()
    with gg.enable_grad():
        gg.set_grad_enabled(False)
        assert not recorded()
    assert recorded()


def test_a_result_made_without_recording_stays_a_constant():
    with gg.no_grad():
        y = X * 2
    z = (y * X).sum()
    z.backward(inputs=[X])
    assert y.is_leaf
    assert X.grad.tolist() == [2.0, 2.0]
    X.grad = None


def test_leaves_made_without_recording_require_gradients_if_asked():
    with gg.no_grad():
        w = gg.zeros(2, requires_grad=True)
    assert w.requires_grad
    assert (w * 2).requires_grad


def test_backward_works_without_recording():
    y = (X * 3).sum()
    with gg.no_grad():
        y.backward()
    assert X.grad.tolist() == [3.0, 3.0]
    X.grad = None


def test_detached_tensors_share_memory():
    y = X.detach()
    assert not y.requires_grad
    y.add_(1)
    assert X.tolist() == [2.0, 2.0]
    y.sub_(1)


def test_detach_in_place():
    y = X * 2
    y.detach_()
    assert y.is_leaf
    assert not y.requires_grad


def test_a_decorated_generator_keeps_its_protocol():
    closed = []

    @gg.no_grad()
    def generate():
        try:
            got = yield 1
            try:
                yield got * 10
            except KeyError:
                yield "caught"
            return "end"
        finally:
            closed.append(gg.is_grad_enabled())

    steps = generate()
    assert (next(steps), steps.send(4), steps.throw(KeyError())) == (1, 40, "caught")
    with pytest.raises(StopIteration, match="end"):
        next(steps)
    steps = generate()
    next(steps)
    steps.close()
    assert closed == [False, False]
    assert gg.is_grad_enabled()
