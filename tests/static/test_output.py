"""What a compiled function prints, its replays print, too."""

import io
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout

import pytest

import gpugrad as gg
from gpugrad import nn


def written(function, *args) -> tuple[str, str]:
    """What a call writes to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        function(*args)
    return out.getvalue(), err.getvalue()


def test_replays_print_the_values_of_now():
    def f(x, rate):
        y = (x * 2).sum()
        print("y is", y, y.item(), f"or {y.item():.3f}; rate {rate:.2e}", flush=True)
        print(f"{x[:2] > 0} {(x > 0).sum().item()} positive", "at step 7", file=sys.stderr)
        x = x + y
        print(x, end="")
        return y

    compiled = gg.compile(f)
    for k in range(12):
        x, rate = gg.tensor([-0.125, 0.25, 1.5]) + k * 0.375, 0.1 + k / 77  # sums are exact
        found, expected = written(compiled, x, rate), written(f, x, rate)
        assert found == expected
        assert "positive at step 7\n" in found[1]
    assert compiled.stats["replays"] >= 6


def test_a_training_step_prints_its_loss_and_gradient():
    gg.manual_seed(0)
    layer = nn.Linear(3, 1)
    optimizer = gg.optim.SGD(layer.parameters(), lr=0.05)
    texts = []

    def step(x):
        optimizer.zero_grad()
        loss = (layer(x) ** 2).mean()
        loss.backward()
        print(loss, layer.weight.grad)
        optimizer.step()
        print(layer.weight)  # after the update
        return loss

    compiled = gg.compile(step)
    x = gg.randn(4, 3)
    texts = [written(compiled, x)[0] for _ in range(8)]
    assert compiled.stats["replays"] >= 4
    assert len(set(texts)) == 8
    assert all("Parameter containing" in t and "grad_fn=<" in t for t in texts)
    assert texts[-1].endswith(f"{layer.weight}\n")


def test_words_alone_are_printed_by_every_replay():
    @gg.compile
    def f(x):
        print("called")
        return x + 1

    assert {written(f, gg.ones(2)) for _ in range(6)} == {("called\n", "")}
    assert f.stats["replays"] == 4


def test_words_that_change_are_not_replayed():
    count = iter(range(100))

    @gg.compile
    def f(x):
        print("call", next(count))
        return x + 1

    with pytest.warns(UserWarning, match="writes other words to the terminal"):
        texts = [written(f, gg.ones(2))[0] for _ in range(10)]
    assert texts == [f"call {k}\n" for k in range(10)]


def test_a_text_that_is_found_in_the_words_waits_for_another_call():
    def f(x):
        print("step 12 of 20:", x.sum().item(), "and", x[0].item())
        return x * 2

    compiled = gg.compile(f)
    values = [1, 2, 12, 20, 30, 55, 41, 0, 2, 20, 12]
    for k in values:  # the first four texts are found in the words, too
        x = gg.tensor([k, 1])
        assert written(compiled, x) == written(f, x)
    assert compiled.stats["replays"] >= 3


def test_equal_texts_of_different_values_are_told_apart():
    def f(x, y):
        first, second = x.sum().item(), y.sum().item()
        print(f"{second} {first}")  # not in the order of their making
        return x + y

    compiled = gg.compile(f)
    for a, b in [(0, 0), (0, 0), (3, 4), (5, 6), (0, 0), (7, 8), (1, 2)]:
        x, y = gg.full((1,), float(a)), gg.full((1,), float(b))
        assert written(compiled, x, y) == written(f, x, y)
    assert compiled.stats["replays"] >= 3


def test_text_that_goes_elsewhere_is_noticed():
    kept = []

    @gg.compile
    def f(x):
        kept.append(f"{x.sum().item():.3f}")
        return x + 1

    with pytest.warns(UserWarning, match=r"'2.000' of a value leaves the program.*test_output"):
        f(gg.ones(2))
    f(gg.zeros(2))
    assert kept == ["2.000", "0.000"]


def test_a_branch_that_is_not_taken_prints_nothing():
    def f(x):
        y = x.sum()
        if y > 3:
            print("large:", y.item())
        return y

    compiled = gg.compile(f)
    for k in range(20):
        x = gg.full((2,), 0.26 * (k % 10 + 1))
        assert written(compiled, x) == written(f, x)
    assert compiled.stats["programs"] == 2


def test_checks_and_second_derivatives_print_once():
    def f(x):
        y = (x**3).sum()
        print("value", y.item())
        return y

    checked = gg.compile(f, check=3)
    on_tape = gg.compile(f)
    for k in range(6):
        x = gg.tensor([1.0 + k, 0.31], dtype=gg.float64)
        assert written(checked, x) == written(f, x)
        x.requires_grad_()

        def second(function=on_tape, x=x):
            (g,) = gg.autograd.grad(function(x), x, create_graph=True)
            return gg.autograd.grad(g.sum(), x)

        assert written(second) == written(lambda x=x: second(f, x))
    assert on_tape.stats["replays"] >= 3


def test_other_threads_are_not_listened_to():
    started, go_on = threading.Event(), threading.Event()

    def talk():
        started.wait(10)
        print("from another thread")
        go_on.set()

    @gg.compile
    def f(x):
        started.set()
        go_on.wait(10)
        return x + 1

    thread = threading.Thread(target=talk)
    thread.start()
    assert "another thread" in written(f, gg.ones(1))[0]
    thread.join()
    f(gg.ones(1))
    assert written(f, gg.ones(1)) == ("", "")
    assert f.stats["replays"] == 1


def test_streams_are_given_back_whatever_happens(monkeypatch):
    before = sys.stdout, sys.stderr

    @gg.compile
    def f(x):
        raise KeyError("no")

    with pytest.raises(KeyError):
        f(gg.ones(1))
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw

    @gg.compile
    def g(x):
        print(x)
        return x + 1

    for _ in range(4):
        g(gg.ones(1))
    assert g.stats["replays"] == 2
    assert sys.stdout is None
