"""What a compiled function reads beside tensors: another value is noticed."""

import argparse
import collections
import functools
import os
import random
import sys
import sysconfig
import types
from unittest import mock

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import nn

SCALE = 2.0


class Settings:
    shift = 1.0

    def __init__(self, scale=2.0):
        self.scale = scale
        self.unused = 0

    @property
    def twice(self):
        return 2 * self.scale

    def times(self, x):
        return x * self.scale


class Slots:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 2.0


class Trainer:
    def __init__(self):
        self.settings = Settings()
        self.model = nn.Dropout(0.5)
        self.epoch = 0

    def step(self, x):
        return self.model(x) * self.settings.scale

    @gg.compile
    def compiled_step(self, x):
        return self.model(x) * self.settings.scale


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.settings = {"scale": 2.0}
        self.sizes = (2, 3)
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x) * self.settings["scale"] * SCALE + len(self.sizes)


def scale_of_module(x):
    return x * SCALE


def set_global(name, value):
    globals()[name] = value


def with_defaults(x, scales=[2.0]):  # noqa: B006
    return x * scales[0]


def cases():
    """A function, and two changes of what it reads: there and back."""
    o = Settings()
    yield "attribute", lambda x: x * o.scale, lambda v: setattr(o, "scale", v)
    p = Settings()
    yield "property", lambda x: x * p.twice, lambda v: setattr(p, "scale", v)
    q = Settings()
    yield "method", lambda x: q.times(x), lambda v: setattr(q, "scale", v)
    r = Settings()
    yield "attribute of the class", lambda x: x * r.shift, lambda v: setattr(r, "shift", v)
    yield "bound method", Settings.times.__get__(r), lambda v: setattr(r, "scale", v)
    slots = Slots()
    yield "slot", lambda x: x * slots.scale, lambda v: setattr(slots, "scale", v)
    named = types.SimpleNamespace(scale=2.0)
    yield "namespace", lambda x: x * named.scale, lambda v: setattr(named, "scale", v)
    parsed = argparse.Namespace(scale=2.0)
    yield "arguments", lambda x: x * parsed.scale, lambda v: setattr(parsed, "scale", v)
    d = {"a": {"scale": 2.0}}
    yield "nested dict", lambda x: x * d["a"]["scale"], lambda v: d["a"].update(scale=v)
    numbers = [1.0, 2.0]
    yield "list", lambda x: x * numbers[1], lambda v: numbers.__setitem__(1, v)
    queue = collections.deque([2.0])
    yield "deque", lambda x: x * queue[0], lambda v: queue.__setitem__(0, v)
    tuples = ([2.0],)
    yield "list in a tuple", lambda x: x * tuples[0][0], lambda v: tuples[0].__setitem__(0, v)
    yield "global", scale_of_module, lambda v: set_global("SCALE", v)
    helped = lambda x: scale_of_module(x)
    yield "global of a helper", helped, lambda v: set_global("SCALE", v)
    partial = functools.partial(lambda s, x: x * s.scale, o)
    yield "partial", partial, lambda v: setattr(o, "scale", v)
    change = lambda v: with_defaults.__defaults__[0].__setitem__(0, v)
    yield "default", with_defaults, change
    layer = Scaled()
    yield "dict of a module", layer, lambda v: layer.settings.update(scale=v)
    yield "global of a module's forward", layer, lambda v: set_global("SCALE", v)
    change = lambda v: setattr(layer, "sizes", (0,) * int(v))
    yield "tuple of a module", lambda x: layer(x), change
    wrapped = functools.wraps(scale_of_module)(lambda x: o.times(x))
    yield "wrapped", wrapped, lambda v: setattr(o, "scale", v)
    inner = gg.compile(lambda x: x * o.scale)
    yield "compiled", lambda x: inner(x) + 1, lambda v: setattr(o, "scale", v)
    tensors = [gg.full((3,), 2.0)]
    swap = lambda v: tensors.__setitem__(0, gg.full((3,), v))
    yield "list of tensors", lambda x: x * tensors[0], swap
    table = np.full(3, 2.0)
    yield "array that Python reads", lambda x: x * float(table[1]), lambda v: table.fill(v)
    ways = {2.0: gg.sin, 3.0: gg.exp}
    chosen = types.SimpleNamespace(f=gg.sin)
    yield "function", lambda x: chosen.f(x), lambda v: setattr(chosen, "f", ways[v])


CASES = {name: (function, change) for name, function, change in cases()}


@pytest.mark.parametrize("name", CASES)
def test_changes_are_noticed(name, request):
    function, change = CASES[name]
    request.addfinalizer(lambda: change(2.0))
    compiled = gg.compile(function, fullgraph=True)
    x = gg.randn(3)
    for value in (2.0, 3.0, 2.0, 3.0):
        change(value)
        for _ in range(4):
            gg.testing.assert_close(compiled(x), function(x))
    # two recordings of each; tensors that are made anew are never the same again
    assert compiled.stats["recorded"] == (8 if name == "list of tensors" else 4)


def test_objects_and_modules_among_the_arguments():
    compiled = gg.compile(lambda model, settings, x: model(x) * settings.scale, fullgraph=True)
    model, settings, x = nn.Dropout(0.5), Settings(), gg.ones(50)
    for _ in range(4):
        assert set(compiled(model, settings, x).tolist()) == {0.0, 4.0}
    model.eval()
    settings.scale = 3.0
    for _ in range(4):
        assert set(compiled(model, settings, x).tolist()) == {3.0}
    assert compiled.stats["recorded"] == 4
    other = Settings(5.0)
    assert set(compiled(model, other, x).tolist()) == {5.0}


def test_decorated_methods():
    x = gg.ones(50)
    for trainer in (Trainer(), Trainer()):
        for _ in range(4):
            assert set(trainer.compiled_step(x).tolist()) == {0.0, 4.0}
        trainer.model.eval()
        trainer.settings.scale = 3.0
        for _ in range(4):
            trainer.epoch += 1  # is not read
            assert set(trainer.compiled_step(x).tolist()) == {3.0}


def test_what_the_code_does_not_name_is_not_looked_at():
    trainer = Trainer()
    compiled = gg.compile(trainer.step)
    for _ in range(10):
        compiled(gg.ones(3))
        trainer.epoch += 1
        trainer.settings.unused += 1
    assert compiled.stats["recorded"] == 2


def test_names_of_attributes_are_no_globals():
    """``x.mean`` has nothing to do with a global ``mean`` of the script."""
    compiled = gg.compile(scale_of_shape)
    for k in range(6):
        set_global("shape", k)
        compiled(gg.ones(3))
    assert compiled.stats["recorded"] == 2


def scale_of_shape(x):
    return x * x.shape[0]


CHANGES = {
    "submodule": lambda m: setattr(m, "inner", nn.Linear(3, 3)),
    "parameter": lambda m: setattr(m.inner, "weight", nn.Parameter(gg.randn(3, 3))),
    "no parameter": lambda m: setattr(m.inner, "bias", None),
    "attribute": lambda m: setattr(m, "sizes", (1, 2, 3, 4)),
    "hook": lambda m: m.register_forward_hook(lambda m, args, y: 3 * y),
    "hook of a submodule": lambda m: m.inner.register_forward_pre_hook(lambda m, a: (2 * a[0],)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("given", ["itself", "in the closure", "as argument"])
def test_changes_of_modules(name, given):
    model, x = Scaled(), gg.randn(4, 3)
    if given == "as argument":
        compiled = functools.partial(gg.compile(lambda m, x: m(x)), model)
    else:
        compiled = gg.compile(model if given == "itself" else lambda x: model(x))
    for _ in range(4):
        gg.testing.assert_close(compiled(x), model(x))
    handle = CHANGES[name](model)
    for _ in range(4):
        gg.testing.assert_close(compiled(x), model(x))
    if handle is not None:
        handle.remove()
        gg.testing.assert_close(compiled(x), model(x))


def test_a_mode_that_is_set_to_what_it_is_costs_nothing():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0)), gg.randn(2, 3)
    compiled = gg.compile(model)
    for _ in range(5):
        model.train()
        compiled(x)
    short = compiled._fast
    model.train()
    compiled(x)
    assert compiled._fast is short


# ------------------------------------------------------------------------------------------------
# what a call changes


class Counter:
    def __init__(self):
        self.count, self.history, self.options = 0, [], {}


def changing():
    c = Counter()

    def attribute(x):
        c.count += 1
        return x if c.count % 5 else x * 2

    yield "c.count", attribute

    def grows(x):
        c.history.append("called")
        return x * 2

    yield "c.history", grows

    def item(x):
        c.options["n"] = c.options.get("n", 0) + 1
        return x * 2 if c.options["n"] < 12 else x * 3

    yield "c.options", item
    n = 0

    def cell(x):
        nonlocal n
        n += 1
        return x * 2 if n < 12 else x * 3

    yield "n", cell

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = 0

        def forward(self, x):
            self.k += 1
            return x if self.k % 5 else x * 2

    yield "self.k", Module()


@pytest.mark.parametrize(("path", "function"), [pytest.param(*c, id=c[0]) for c in changing()])
def test_what_every_call_changes(path, function):
    found = []
    compiled = gg.compile(function)
    with pytest.warns(UserWarning, match=f"every call changes {path}, which it reads") as caught:
        for _ in range(20):
            found.append(compiled(gg.ones(1)).item())
    assert len(caught) == 1
    if path == "c.history":
        assert found == [2.0] * 20
    elif path in ("c.options", "n"):
        assert found == [2.0] * 11 + [3.0] * 9
    else:
        assert found == [1.0, 1.0, 1.0, 1.0, 2.0] * 4
    assert compiled.stats["replays"] == 0


def test_arrays_that_operations_read_are_inputs():
    """Other values in them make no variants."""
    array, tensor = np.ones(3), gg.ones(3, dtype=gg.float64)
    compiled = gg.compile(lambda x: x * array + tensor, fullgraph=True)
    for k in range(8):
        array.fill(k)
        tensor.fill_(k)
        assert compiled(gg.ones(3, dtype=gg.float64)).tolist() == [2.0 * k] * 3
    assert compiled.stats["recorded"] <= 3


def test_slices_are_what_they_say():
    compiled = gg.compile(lambda x, part: x[part] * 2)
    for _ in range(4):
        for k in (1, 2):
            assert compiled(gg.arange(4.0), slice(k)).tolist() == [2.0 * i for i in range(k)]
    assert compiled.stats["variants"] == 2


def test_objects_of_installed_packages(monkeypatch):
    """A progress bar that is moved on, a trainer that has a number."""
    package = types.ModuleType("some_package")
    package.__file__ = os.path.join(sysconfig.get_path("purelib"), "some_package.py")
    monkeypatch.setitem(sys.modules, "some_package", package)
    code = (
        "class Bar:\n"
        "    def __init__(self):\n"
        "        self.n, self.scale = 0, 2.0\n"
        "    def update(self):\n"
        "        self.n += 1\n"
    )
    exec(code, vars(package))
    bar = package.Bar()
    scaled = gg.compile(lambda x: x * bar.scale, fullgraph=True)
    for value in (2.0, 3.0):
        bar.scale = value
        for _ in range(4):
            assert scaled(gg.ones(1)).item() == value

    @gg.compile
    def moved(x):
        bar.update()
        return x * 2

    with pytest.warns(UserWarning, match=r"every call changes bar\.n"):
        for k in range(1, 20):
            moved(gg.ones(1))
            assert bar.n == k


def test_what_the_first_call_prepares_is_no_reason():
    c = Counter()

    def f(x):
        if "weight" not in c.options:
            c.options["weight"] = gg.full((2,), random.random())
        return x * c.options["weight"]

    compiled = gg.compile(f)
    x = gg.randn(2)
    for _ in range(6):
        gg.testing.assert_close(compiled(x), x * c.options.get("weight", compiled(x) / x))
    assert compiled.stats["replays"] > 0


class Counting:
    """An owner of counts that are part of programs."""

    def __init__(self):
        self.calls = 0

    def count(self):
        self.calls += 1

    def uncount(self):
        self.calls -= 1


def test_owners_of_counts_are_left_to_themselves():
    counting = Counting()

    def f(x):
        gg.compiler.repeated_before_replay("count", counting, counting.count, counting.uncount)
        return x * 2

    compiled = gg.compile(f, fullgraph=True)
    for k in range(1, 9):
        compiled(gg.ones(2))
        assert counting.calls == k
    assert compiled.stats["replays"] > 0


# ------------------------------------------------------------------------------------------------
# random numbers of others


def drawing():
    yield "random", lambda x: x * 2 if random.random() < 0.5 else x * 3
    shuffle = random.shuffle

    def shuffled(x):
        order = [2, 3]
        shuffle(order)
        return x * order[0]

    yield "a function of random", shuffled
    own = random.Random(0)
    yield "a Random", lambda x: x * own.choice([2, 3])
    yield "numpy.random", lambda x: x * 2 if np.random.rand() < 0.5 else x * 3
    rand = np.random.rand
    yield "a function of numpy.random", lambda x: x * 2 if rand() < 0.5 else x * 3
    generator = np.random.default_rng(0)
    yield "a Generator", lambda x: x * 2 if generator.random() < 0.5 else x * 3


@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in drawing()])
def test_random_numbers_of_python_and_numpy(function):
    compiled = gg.compile(function)
    with pytest.warns(UserWarning, match="random numbers of .*random|its calls differ"):
        found = {compiled(gg.ones(1)).item() for _ in range(60)}
    assert found == {2.0, 3.0}
    assert compiled.stats["replays"] == 0


# ------------------------------------------------------------------------------------------------
# odd things to walk through


def test_what_refers_to_itself_or_is_large_or_deep():
    loop: list = [1.0]
    loop.append(loop)
    large = list(range(100_000))
    deep: list = [2.0]
    for _ in range(5000):
        deep = [deep]
    anything = mock.Mock()
    compiled = gg.compile(lambda x: x * loop[0] + len(large) + len(deep) + bool(anything.training))
    for _ in range(5):
        assert compiled(gg.zeros(1)).item() == 100_002
    large.append(1)
    for _ in range(5):
        assert compiled(gg.zeros(1)).item() == 100_003


def test_negative_zero_is_another_number():
    o = Settings(0.0)
    compiled = gg.compile(lambda x: x / o.scale)
    with np.errstate(divide="ignore"):
        for value in (0.0, -0.0):
            o.scale = value
            for _ in range(4):
                assert compiled(gg.ones(1)).item() == (-np.inf if str(value)[0] == "-" else np.inf)
