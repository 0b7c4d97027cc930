"""The measured programs w1 to w12, each written once against PyTorch's API.

Every function below takes a library with torch's names (torch itself, or gpugrad), the row's data
(`benchmarks/data.py`) and `compiled`, which is applied to the function that computes the loss: the
identity, except where a peer compiles the loss alone. It returns

    step()   one step: forward, backward and, where the row trains, the update; returns the loss,
             or a tuple of the loss and other results of the step
    state()  the gradients, for rows whose results do not show them; empty where a row trains, as
             the losses after the updates do, and parameters whose gradient is mere rounding (a
             key's bias) rightly differ

`jax_workloads.py`, `tensorflow_workloads.py` and `numpy_workloads.py` hold the same programs, under
the same names, for libraries of another style. This file imports nothing but NumPy: the library
measured is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.data import Arrays, Data

Step = Callable[[], Any]
State = Callable[[], list[Any]]
Compiled = Callable[[Callable[[], Any]], Callable[[], Any]]


def as_it_is(function: Callable[[], Any]) -> Callable[[], Any]:
    return function


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    program: Callable[[Any, Data, Compiled], tuple[Step, State]]
    data: Callable[..., Data]
    goal: float | None = None  # eager: ours / torch eager, at most
    static_goal: float | None = None  # static: ours / the best peer, at most
    ops: int = 1  # times are divided by this: w5 is quoted for one op
    shape: dict[str, int] = field(default_factory=dict)  # for `data`
    near: tuple[dict[str, int], ...] = ()  # shapes nearby, for which the goals must hold, too

    def build(self, lib: Any, seed: int, compiled: Compiled = as_it_is) -> tuple[Step, State]:
        return self.program(lib, self.data(seed, **self.shape), compiled)


# ---- helpers ------------------------------------------------------------------------------------


def leaf(lib: Any, array: np.ndarray) -> Any:
    """A parameter with this value."""
    return lib.from_numpy(array.copy()).requires_grad_()


def leaves(lib: Any, arrays: Arrays) -> list[Any]:
    return [leaf(lib, array) for array in arrays.values()]


def tensors(lib: Any, arrays: Arrays) -> list[Any]:
    return [lib.from_numpy(array) for array in arrays.values()]


def initialise(lib: Any, module: Any, weights: Arrays) -> Any:
    with lib.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(lib.from_numpy(weights[name]))
    return module


def fused(lib: Any) -> dict[str, bool]:
    """torch's optimizers are at their best with `fused=True`: that is what we measure against."""
    return {"fused": True} if lib.__name__ == "torch" else {}


def training(optimizer: Any, loss_of: Callable[[], Any]) -> tuple[Step, State]:
    def step() -> Any:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss

    return step, list


def gradients(parameters: list[Any], loss_of: Callable[[], Any]) -> tuple[Step, State]:
    def step() -> Any:
        for parameter in parameters:
            parameter.grad = None
        loss = loss_of()
        loss.backward()
        return loss

    return step, lambda: [parameter.grad for parameter in parameters]


# ---- the rows -----------------------------------------------------------------------------------


def linear_regression(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """y = w x + b on 200 points, mean squared error, SGD written by hand, lr 0.1."""
    x, y = tensors(lib, given.inputs)
    w, b = leaves(lib, given.weights)
    loss_of = compiled(lambda: ((w * x + b - y) ** 2).mean())

    def step() -> Any:
        loss = loss_of()
        loss.backward()
        with lib.no_grad():
            w.sub_(0.1 * w.grad)
            b.sub_(0.1 * b.grad)
        w.grad = b.grad = None
        return loss

    return step, list


def mlp(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """784-128-10, relu, batch 64, cross entropy, Adam, lr 1e-3."""
    nn = lib.nn
    hidden, pixels = given.weights["0.weight"].shape
    model = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    model = initialise(lib, model, given.weights)
    x, y = tensors(lib, given.inputs)
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3, **fused(lib))
    return training(optimizer, compiled(lambda: nn.functional.cross_entropy(model(x), y)))


def wide_mlp(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """1024-4096-4096-10, relu then gelu(tanh), batch 256, AdamW, lr 1e-4, decay 0.01."""
    nn = lib.nn
    hidden, features = given.weights["0.weight"].shape
    model = nn.Sequential(
        nn.Linear(features, hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.GELU(approximate="tanh"),
        nn.Linear(hidden, 10),
    )  # fmt: skip
    model = initialise(lib, model, given.weights)
    x, y = tensors(lib, given.inputs)
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, **fused(lib))
    return training(optimizer, compiled(lambda: nn.functional.cross_entropy(model(x), y)))


def lenet(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """LeNet on 28x28 images, max pooling and relu, SGD with momentum 0.9, lr 1e-3."""
    nn = lib.nn
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip
    model = initialise(lib, model, given.weights)
    x, y = tensors(lib, given.inputs)
    optimizer = lib.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, **fused(lib))
    return training(optimizer, compiled(lambda: nn.functional.cross_entropy(model(x), y)))


def op_chain(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """100 ops on (8, 8), mul, add and tanh in turn, then sum and backward: the cost of one op."""
    x, a, b = parameters = leaves(lib, given.weights)

    def loss_of() -> Any:
        y = x
        for i in range(100):
            if i % 3 == 0:
                y = y * a
            elif i % 3 == 1:
                y = y + b
            else:
                y = lib.tanh(y)
        return y.sum()

    return gradients(parameters, compiled(loss_of))


def elementwise(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """mean(tanh(a x + b) sigmoid(c x) + exp(-x x)) of 4 M elements, value and gradient."""
    (x,) = parameters = leaves(lib, given.weights)

    def loss_of() -> Any:
        y = lib.tanh(0.7 * x + 0.3) * lib.sigmoid(1.3 * x) + lib.exp(-x * x)
        return y.mean()

    return gradients(parameters, compiled(loss_of))


def row_ops(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """Layer norm, gelu(tanh), softmax, sum of squares on (4096, 1024), value and all gradients."""
    F = lib.nn.functional
    x, weight, bias = parameters = leaves(lib, given.weights)
    columns = given.weights["x"].shape[1]

    def loss_of() -> Any:
        y = F.layer_norm(x, (columns,), weight, bias)
        y = F.softmax(F.gelu(y, approximate="tanh"), dim=-1)
        return (y * y).sum()

    return gradients(parameters, compiled(loss_of))


def transformer(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """Decoder, 4 pre-norm layers, d 128, 4 heads, T 128, B 8, vocabulary 256; AdamW, lr 3e-4."""
    nn, F = lib.nn, lib.nn.functional
    (B, T), D = given.inputs["ids"].shape, given.weights["norm.weight"].size
    layers = sum(name.endswith("qkv.bias") for name in given.weights)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, x: Any) -> Any:
            qkv = self.qkv(self.norm1(x)).view(B, T, 3, D // data.HEAD, data.HEAD)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(data.WORDS, D), nn.Embedding(T, D)
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
            self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, data.WORDS)

        def forward(self, ids: Any, places: Any) -> Any:
            return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions(places))))

    model = initialise(lib, Decoder(), given.weights)
    ids, targets, places = tensors(lib, given.inputs)
    optimizer = lib.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01, **fused(lib))

    def loss_of() -> Any:
        return F.cross_entropy(model(ids, places).view(-1, data.WORDS), targets)

    return training(optimizer, compiled(loss_of))


def residual_block(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """relu(x + norm(conv(relu(norm(conv(x)))))), 3x3 64-64, (16, 64, 32, 32), SGD, lr 0.01."""
    nn, F = lib.nn, lib.nn.functional
    x, y = tensors(lib, given.inputs)
    C = x.shape[1]
    block = nn.Sequential(
        nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C), nn.ReLU(),
        nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C),
    )  # fmt: skip
    block = initialise(lib, block, given.weights)
    optimizer = lib.optim.SGD(block.parameters(), lr=0.01, **fused(lib))
    return training(optimizer, compiled(lambda: F.mse_loss(F.relu(x + block(x)), y)))


def newton_square_root(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """x <- (x + a / x) / 2 until no value moves by 1e-4, for 1000 values; gradient of the sum."""
    (a,) = parameters = leaves(lib, given.weights)
    start = lib.ones(a.shape[0])

    def loss_of() -> Any:
        x, moved = start, math.inf
        while moved > 1e-4:
            previous, x = x, 0.5 * (x + a / x)
            moved = (x - previous).abs().max().item()
        return x.sum()

    return gradients(parameters, compiled(loss_of))


def recurrent(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """h <- tanh(U x + W h + b), 50 steps, 64 units, batch 32, error of the last; SGD, lr 0.01."""
    F = lib.nn.functional
    x, target = tensors(lib, given.inputs)
    U, W, b, V, c = parameters = leaves(lib, given.weights)
    steps, batch, hidden = given.inputs["x"].shape
    start = lib.zeros(batch, hidden)
    optimizer = lib.optim.SGD(parameters, lr=0.01, **fused(lib))

    def loss_of() -> Any:
        h = start
        for t in range(steps):
            h = lib.tanh(F.linear(x[t], U, b) + F.linear(h, W))
        return F.mse_loss(F.linear(h, V, c), target)

    return training(optimizer, compiled(loss_of))


def embedding(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """Mean of 32 embeddings out of 10000 x 64, linear 64-2, batch 64; Adam, lr 1e-3."""
    nn, F = lib.nn, lib.nn.functional
    words, width = given.weights["table.weight"].shape

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(words, width), nn.Linear(width, 2)

        def forward(self, ids: Any) -> Any:
            return self.head(self.table(ids).mean(1))

    model = initialise(lib, Bag(), given.weights)
    ids, y = tensors(lib, given.inputs)
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3, **fused(lib))
    return training(optimizer, compiled(lambda: F.cross_entropy(model(ids), y)))


def hessian_vector_product(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
    """H v of a 32-64-1 tanh MLP, batch 128, squared error: gradient of the gradient."""
    F = lib.nn.functional
    x, y, *vector = tensors(lib, given.inputs)
    w1, b1, w2, b2 = parameters = leaves(lib, given.weights)
    loss_of = compiled(lambda: F.mse_loss(F.linear(lib.tanh(F.linear(x, w1, b1)), w2, b2), y))

    def step() -> tuple[Any, ...]:
        loss = loss_of()
        gradient = lib.autograd.grad(loss, parameters, create_graph=True)
        return loss, *lib.autograd.grad(gradient, parameters, grad_outputs=vector)

    return step, list


# ---- one op at a time ---------------------------------------------------------------------------


def one_op(
    function: Callable[..., Any], backward: bool
) -> Callable[[Any, Data, Compiled], tuple[Step, State]]:
    """What a single small op costs, alone or with its backward from a given gradient."""

    def program(lib: Any, given: Data, compiled: Compiled) -> tuple[Step, State]:
        arguments = leaves(lib, given.weights)
        ones = lib.ones(8, 8)
        forward = compiled(lambda: function(lib, *arguments))

        def forward_and_backward() -> Any:
            for argument in arguments:
                argument.grad = None
            y = forward()
            y.backward(ones)
            return y

        if backward:
            return forward_and_backward, lambda: [argument.grad for argument in arguments]
        return forward, list

    return program


def operands(*shapes: tuple[int, ...]) -> Callable[[int], Data]:
    def of(seed: int) -> Data:
        rng = np.random.default_rng(seed)
        return Data({str(i): data.normal(rng, *shape) for i, shape in enumerate(shapes)}, {})

    return of


def overhead_rows() -> list[Row]:
    square, row = (8, 8), (8,)
    cases: list[tuple[str, Callable[..., Any], tuple[tuple[int, ...], ...]]] = [
        ("add", lambda lib, a, b: a + b, (square, square)),
        ("mul", lambda lib, a, b: a * b, (square, square)),
        ("add (8,8)+(8,)", lambda lib, a, b: a + b, (square, row)),
        ("matmul", lambda lib, a, b: a @ b, (square, square)),
        ("tanh", lambda lib, a: lib.tanh(a), (square,)),
    ]
    return [
        Row(name + suffix, "one op on (8, 8)", one_op(function, backward), operands(*shapes))
        for backward, suffix in ((False, ""), (True, " + backward"))
        for name, function, shapes in cases
    ]


# ---- the tables of rows --------------------------------------------------------------------------


def row(
    name: str,
    what: str,
    program: Callable[[Any, Data, Compiled], tuple[Step, State]],
    goal: float | None = None,
    static_goal: float | None = None,
    **others: Any,
) -> Row:
    """A row whose data are made by the function of `data` that is called like its program."""
    given = getattr(data, program.__name__)
    return Row(name, what, program, given, goal, static_goal, **others)


def table_of(*rows: Row) -> dict[str, Row]:
    return {row.name: row for row in rows}


OVERHEAD = table_of(*overhead_rows())

# Goals: ours / torch eager for eager, ours / the best peer for static.
ROWS = table_of(
    row("w1", "linear regression, 200 points", linear_regression, 0.6, 0.2,
        near=({"points": 137}, {"points": 1000})),
    row("w2", "MLP 784-128-10, batch 64, Adam", mlp, 0.7, 0.4,
        near=({"batch": 50, "hidden": 100}, {"batch": 96, "hidden": 160})),
    row("w3", "MLP 1024-4096-4096-10, batch 256, AdamW", wide_mlp, 0.5, 0.8,
        near=({"batch": 200, "hidden": 3000},)),
    row("w4/8", "LeNet, batch 8", lenet, 1.0, 0.5, shape={"batch": 8}, near=({"batch": 11},)),
    row("w4/64", "LeNet, batch 64", lenet, 1.0, 0.5, shape={"batch": 64}, near=({"batch": 50},)),
    row("w5", "100 chained ops on (8, 8), per op", op_chain, 0.5, 0.3, ops=100,
        near=({"rows": 7, "columns": 11},)),
    row("w6", "elementwise chain, 4 M elements", elementwise, 0.3, 0.25,
        near=({"elements": 1_234_567},)),
    row("w7", "layer norm, gelu, softmax, (4096, 1024)", row_ops, 0.8, 0.3,
        near=({"rows": 3000, "columns": 1000},)),
    row("w8", "transformer, 4 layers, d 128, T 128, B 8", transformer, 0.9, 0.7,
        near=({"batch": 6, "length": 100, "width": 96},)),
    row("w9", "residual block, (16, 64, 32, 32)", residual_block, 1.1, 0.8,
        near=({"batch": 10, "channels": 48, "side": 28},)),
    row("w10", "Newton square root, while loop", newton_square_root, 0.6, 0.3,
        near=({"values": 777},)),
    row("w10b", "RNN, 50 steps, hidden 64, batch 32", recurrent, 0.5, 0.4,
        near=({"steps": 40, "batch": 20, "hidden": 50},)),
    row("w11", "embedding 10000x64, mean, Adam", embedding, 0.8, 0.4,
        near=({"words": 8000, "length": 25, "batch": 50},)),
    row("w12", "Hessian-vector product, 32-64-1 MLP", hessian_vector_product, 0.7, 0.4,
        near=({"batch": 100, "hidden": 50},)),
)  # fmt: skip


def shapes_nearby(original: Row) -> list[Row]:
    """The same goals at other shapes: a special case for one shape would show here."""
    found = []
    for i, shape in enumerate(original.near, 1):
        sizes = ", ".join(f"{name} {size}" for name, size in shape.items())
        what = f"{original.name} with {sizes}"
        shape = original.shape | shape
        found.append(
            replace(original, name=f"{original.name}~{i}", what=what, shape=shape, near=())
        )
    return found


NEAR = table_of(*(found for original in ROWS.values() for found in shapes_nearby(original)))

# One program at growing sizes: where does static stop paying? Names end in the size.
SWEEP = table_of(
    *(
        row(f"chain/{n}", f"100 chained ops on {n} elements", op_chain,
            shape={"rows": 8, "columns": n // 8})
        for n in (8, 64, 512, 4096, 32_768, 262_144)
    ),
    *(
        row(f"mlp/{hidden}", f"MLP 784-{hidden}-10, batch 64, Adam", mlp, shape={"hidden": hidden})
        for hidden in (8, 32, 128, 512, 2048)
    ),
)  # fmt: skip

EVERY = {**ROWS, **NEAR, **SWEEP, **OVERHEAD}
