"""The measured programs w1 to w12, each written once against PyTorch's API.

Every function below takes a library with torch's names (torch itself, or gpugrad) and a seed.
It returns

    step()   one step: forward, backward and, where the row trains, the update; returns the loss
    state()  the gradients, for rows whose loss does not show them; empty where a row trains, as the
             losses after the updates do, and parameters whose gradient is mere rounding (a key's
             bias) rightly differ

Data and initial weights come from `numpy.random.default_rng(seed)`, so that all libraries start
from the same bits. This file imports nothing but NumPy: the library measured is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Step = Callable[[], Any]
State = Callable[[], list[Any]]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    build: Callable[[Any, int], tuple[Step, State]]
    goal: float | None  # ours / torch eager, at most
    ops: int = 1  # times are divided by this: w5 is quoted for one op


# ---- helpers ------------------------------------------------------------------------------------


def he(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal weights of standard deviation sqrt(2 / fan_in), outputs along the first dimension."""
    fan_in = math.prod(shape[1:])
    return (rng.standard_normal(shape) * math.sqrt(2 / fan_in)).astype(np.float32)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def leaf(lib: Any, array: np.ndarray) -> Any:
    """A parameter with this value."""
    return lib.from_numpy(array.copy()).requires_grad_()


def initialise(lib: Any, module: Any, rng: np.random.Generator) -> Any:
    """He weights for what multiplies, zeros for biases; scales of norm layers stay at one."""
    with lib.no_grad():
        for parameter in module.parameters():
            shape = tuple(parameter.shape)
            if len(shape) > 1:
                parameter.copy_(lib.from_numpy(he(rng, *shape)))
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
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


# ---- the rows -----------------------------------------------------------------------------------


def linear_regression(lib: Any, seed: int) -> tuple[Step, State]:
    """y = w x + b on 200 points, mean squared error, SGD written by hand, lr 0.1."""
    rng = np.random.default_rng(seed)
    inputs = normal(rng, 200)
    targets = (3 * inputs + 2 + 0.1 * normal(rng, 200)).astype(np.float32)
    x, y = lib.from_numpy(inputs), lib.from_numpy(targets)
    w, b = leaf(lib, normal(rng, 1)), leaf(lib, np.zeros(1, np.float32))

    def step() -> Any:
        loss = ((w * x + b - y) ** 2).mean()
        loss.backward()
        with lib.no_grad():
            w.sub_(0.1 * w.grad)
            b.sub_(0.1 * b.grad)
        w.grad = b.grad = None
        return loss

    return step, list


def mlp(lib: Any, seed: int) -> tuple[Step, State]:
    """784-128-10, relu, batch 64, cross entropy, Adam, lr 1e-3."""
    rng = np.random.default_rng(seed)
    nn = lib.nn
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    initialise(lib, model, rng)
    x = lib.from_numpy(rng.random((64, 784), dtype=np.float32))
    y = lib.from_numpy(rng.integers(0, 10, 64))
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3, **fused(lib))
    return training(optimizer, lambda: nn.functional.cross_entropy(model(x), y))


def wide_mlp(lib: Any, seed: int) -> tuple[Step, State]:
    """1024-4096-4096-10, relu then gelu(tanh), batch 256, AdamW, lr 1e-4, decay 0.01."""
    rng = np.random.default_rng(seed)
    nn = lib.nn
    model = nn.Sequential(
        nn.Linear(1024, 4096), nn.ReLU(),
        nn.Linear(4096, 4096), nn.GELU(approximate="tanh"),
        nn.Linear(4096, 10),
    )  # fmt: skip
    initialise(lib, model, rng)
    x = lib.from_numpy(normal(rng, 256, 1024))
    y = lib.from_numpy(rng.integers(0, 10, 256))
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, **fused(lib))
    return training(optimizer, lambda: nn.functional.cross_entropy(model(x), y))


def lenet(lib: Any, seed: int, batch: int) -> tuple[Step, State]:
    """LeNet on 28x28 images, max pooling and relu, SGD with momentum 0.9, lr 1e-3."""
    rng = np.random.default_rng(seed)
    nn = lib.nn
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 10),
    )  # fmt: skip
    initialise(lib, model, rng)
    x = lib.from_numpy(normal(rng, batch, 1, 28, 28))
    y = lib.from_numpy(rng.integers(0, 10, batch))
    optimizer = lib.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, **fused(lib))
    return training(optimizer, lambda: nn.functional.cross_entropy(model(x), y))


def op_chain(lib: Any, seed: int) -> tuple[Step, State]:
    """100 ops on (8, 8), mul, add and tanh in turn, then sum and backward: the cost of one op."""
    rng = np.random.default_rng(seed)
    x, a, b = (leaf(lib, normal(rng, 8, 8)) for _ in range(3))

    def step() -> Any:
        x.grad = a.grad = b.grad = None
        y = x
        for i in range(100):
            if i % 3 == 0:
                y = y * a
            elif i % 3 == 1:
                y = y + b
            else:
                y = lib.tanh(y)
        loss = y.sum()
        loss.backward()
        return loss

    return step, lambda: [x.grad, a.grad, b.grad]


def elementwise(lib: Any, seed: int) -> tuple[Step, State]:
    """mean(tanh(a x + b) sigmoid(c x) + exp(-x x)) of 4 M elements, value and gradient."""
    x = leaf(lib, normal(np.random.default_rng(seed), 4_000_000))

    def step() -> Any:
        x.grad = None
        y = lib.tanh(0.7 * x + 0.3) * lib.sigmoid(1.3 * x) + lib.exp(-x * x)
        loss = y.mean()
        loss.backward()
        return loss

    return step, lambda: [x.grad]


def row_ops(lib: Any, seed: int) -> tuple[Step, State]:
    """Layer norm, gelu(tanh), softmax, sum of squares on (4096, 1024), value and all gradients."""
    rng = np.random.default_rng(seed)
    F = lib.nn.functional
    x = leaf(lib, normal(rng, 4096, 1024))
    weight = leaf(lib, 1 + 0.1 * normal(rng, 1024))
    bias = leaf(lib, 0.1 * normal(rng, 1024))

    def step() -> Any:
        x.grad = weight.grad = bias.grad = None
        y = F.layer_norm(x, (1024,), weight, bias)
        y = F.softmax(F.gelu(y, approximate="tanh"), dim=-1)
        loss = (y * y).sum()
        loss.backward()
        return loss

    return step, lambda: [x.grad, weight.grad, bias.grad]


def transformer(lib: Any, seed: int) -> tuple[Step, State]:
    """Decoder, 4 pre-norm layers, d 128, 4 heads, T 128, B 8, vocabulary 256; AdamW, lr 3e-4."""
    rng = np.random.default_rng(seed)
    nn, F = lib.nn, lib.nn.functional
    B, T, D, heads, vocabulary = 8, 128, 128, 4, 256

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
            self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

        def forward(self, x: Any) -> Any:
            qkv = self.qkv(self.norm1(x)).view(B, T, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocabulary, D), nn.Embedding(T, D)
            self.blocks = nn.Sequential(*(Block() for _ in range(4)))
            self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, vocabulary)

        def forward(self, ids: Any, places: Any) -> Any:
            return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions(places))))

    model = initialise(lib, Decoder(), rng)
    text = rng.integers(0, vocabulary, (B, T + 1))
    ids = lib.from_numpy(np.ascontiguousarray(text[:, :-1]))
    targets = lib.from_numpy(np.ascontiguousarray(text[:, 1:]).reshape(-1))
    places = lib.from_numpy(np.arange(T))
    optimizer = lib.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01, **fused(lib))
    return training(
        optimizer, lambda: F.cross_entropy(model(ids, places).view(-1, vocabulary), targets)
    )


def residual_block(lib: Any, seed: int) -> tuple[Step, State]:
    """relu(x + norm(conv(relu(norm(conv(x)))))), 3x3 64-64, (16, 64, 32, 32), SGD, lr 0.01."""
    rng = np.random.default_rng(seed)
    nn, F = lib.nn, lib.nn.functional
    block = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64),
    )  # fmt: skip
    initialise(lib, block, rng)
    x = lib.from_numpy(normal(rng, 16, 64, 32, 32))
    y = lib.from_numpy(normal(rng, 16, 64, 32, 32))
    optimizer = lib.optim.SGD(block.parameters(), lr=0.01, **fused(lib))
    return training(optimizer, lambda: F.mse_loss(F.relu(x + block(x)), y))


def newton_square_root(lib: Any, seed: int) -> tuple[Step, State]:
    """x <- (x + a / x) / 2 until no value moves by 1e-4, for 1000 values; gradient of the sum."""
    a = leaf(lib, np.random.default_rng(seed).uniform(0.5, 4, 1000).astype(np.float32))
    start = lib.ones(1000)

    def step() -> Any:
        a.grad = None
        x, moved = start, math.inf
        while moved > 1e-4:
            previous, x = x, 0.5 * (x + a / x)
            moved = (x - previous).abs().max().item()
        loss = x.sum()
        loss.backward()
        return loss

    return step, lambda: [a.grad]


def recurrent(lib: Any, seed: int) -> tuple[Step, State]:
    """h <- tanh(U x + W h + b), 50 steps, 64 units, batch 32, error of the last; SGD, lr 0.01."""
    rng = np.random.default_rng(seed)
    F = lib.nn.functional
    x = lib.from_numpy(normal(rng, 50, 32, 64))
    target = lib.from_numpy(normal(rng, 32, 1))
    start = lib.zeros(32, 64)
    # W at half the he scale keeps 50 steps from saturating.
    U, W, V = leaf(lib, he(rng, 64, 64)), leaf(lib, he(rng, 64, 64) / 2), leaf(lib, he(rng, 1, 64))
    b, c = leaf(lib, np.zeros(64, np.float32)), leaf(lib, np.zeros(1, np.float32))
    parameters = [U, W, b, V, c]
    optimizer = lib.optim.SGD(parameters, lr=0.01, **fused(lib))

    def step() -> Any:
        optimizer.zero_grad()
        h = start
        for t in range(50):
            h = lib.tanh(F.linear(x[t], U, b) + F.linear(h, W))
        loss = F.mse_loss(F.linear(h, V, c), target)
        loss.backward()
        optimizer.step()
        return loss

    return step, list


def embedding(lib: Any, seed: int) -> tuple[Step, State]:
    """Mean of 32 embeddings out of 10000 x 64, linear 64-2, batch 64; Adam, lr 1e-3."""
    rng = np.random.default_rng(seed)
    nn, F = lib.nn, lib.nn.functional

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10_000, 64), nn.Linear(64, 2)

        def forward(self, ids: Any) -> Any:
            return self.head(self.table(ids).mean(1))

    model = initialise(lib, Bag(), rng)
    ids = lib.from_numpy(rng.integers(0, 10_000, (64, 32)))
    y = lib.from_numpy(rng.integers(0, 2, 64))
    optimizer = lib.optim.Adam(model.parameters(), lr=1e-3, **fused(lib))
    return training(optimizer, lambda: F.cross_entropy(model(ids), y))


def hessian_vector_product(lib: Any, seed: int) -> tuple[Step, State]:
    """H v of a 32-64-1 tanh MLP, batch 128, squared error: gradient of the gradient."""
    rng = np.random.default_rng(seed)
    F = lib.nn.functional
    x, y = lib.from_numpy(normal(rng, 128, 32)), lib.from_numpy(normal(rng, 128, 1))
    arrays = [he(rng, 64, 32), np.zeros(64, np.float32), he(rng, 1, 64), np.zeros(1, np.float32)]
    parameters = [leaf(lib, array) for array in arrays]
    vector = [lib.from_numpy(normal(rng, *array.shape)) for array in arrays]
    product: list[Any] = []

    def step() -> Any:
        w1, b1, w2, b2 = parameters
        loss = F.mse_loss(F.linear(lib.tanh(F.linear(x, w1, b1)), w2, b2), y)
        gradient = lib.autograd.grad(loss, parameters, create_graph=True)
        product[:] = lib.autograd.grad(gradient, parameters, grad_outputs=vector)
        return loss

    return step, lambda: product


# ---- one op at a time ---------------------------------------------------------------------------


def one_op(
    function: Callable[..., Any], *shapes: tuple[int, ...], backward: bool
) -> Callable[[Any, int], tuple[Step, State]]:
    """What a single small op costs, alone or with its backward from a given gradient."""

    def build(lib: Any, seed: int) -> tuple[Step, State]:
        rng = np.random.default_rng(seed)
        arguments = [leaf(lib, normal(rng, *shape)) for shape in shapes]
        ones = lib.ones(8, 8)

        def forward() -> Any:
            return function(lib, *arguments)

        def forward_and_backward() -> Any:
            for argument in arguments:
                argument.grad = None
            y = function(lib, *arguments)
            y.backward(ones)
            return y

        if backward:
            return forward_and_backward, lambda: [argument.grad for argument in arguments]
        return forward, list

    return build


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
        Row(name + suffix, "one op on (8, 8)", one_op(function, *shapes, backward=backward), None)
        for backward, suffix in ((False, ""), (True, " + backward"))
        for name, function, shapes in cases
    ]


OVERHEAD = {row.name: row for row in overhead_rows()}

ROWS = {
    row.name: row
    for row in (
        Row("w1", "linear regression, 200 points", linear_regression, 0.6),
        Row("w2", "MLP 784-128-10, batch 64, Adam", mlp, 0.7),
        Row("w3", "MLP 1024-4096-4096-10, batch 256, AdamW", wide_mlp, 0.5),
        Row("w4/8", "LeNet, batch 8", lambda lib, seed: lenet(lib, seed, 8), 1.0),
        Row("w4/64", "LeNet, batch 64", lambda lib, seed: lenet(lib, seed, 64), 1.0),
        Row("w5", "100 chained ops on (8, 8), per op", op_chain, 0.5, ops=100),
        Row("w6", "elementwise chain, 4 M elements", elementwise, 0.3),
        Row("w7", "layer norm, gelu, softmax, (4096, 1024)", row_ops, 0.8),
        Row("w8", "transformer, 4 layers, d 128, T 128, B 8", transformer, 0.9),
        Row("w9", "residual block, (16, 64, 32, 32)", residual_block, 1.1),
        Row("w10", "Newton square root, while loop", newton_square_root, 0.6),
        Row("w10b", "RNN, 50 steps, hidden 64, batch 32", recurrent, 0.5),
        Row("w11", "embedding 10000x64, mean, Adam", embedding, 0.8),
        Row("w12", "Hessian-vector product, 32-64-1 MLP", hessian_vector_product, 0.7),
    )
}
