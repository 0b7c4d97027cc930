"""Data and initial weights of the rows, as NumPy arrays: the same bits for every library.

One function for each row takes a seed and the row's shapes and returns `Data`. Weights have the
names and the layout of PyTorch's modules (a linear layer's is (outputs, inputs), a convolution's
(outputs, inputs, height, width)); a library that likes another layout changes it before it starts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Data(NamedTuple):
    weights: Arrays  # what gradients are taken of
    inputs: Arrays


def he(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal weights of standard deviation sqrt(2 / fan_in), outputs along the first dimension."""
    fan_in = math.prod(shape[1:])
    return (rng.standard_normal(shape) * math.sqrt(2 / fan_in)).astype(np.float32)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def layer(rng: np.random.Generator, name: str, *shape: int) -> Arrays:
    """Weight and bias of a linear layer or a convolution."""
    return {f"{name}.weight": he(rng, *shape), f"{name}.bias": zeros(shape[0])}


def norm(name: str, width: int) -> Arrays:
    return {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": zeros(width)}


def linear_regression(seed: int, points: int = 200) -> Data:
    rng = np.random.default_rng(seed)
    x = normal(rng, points)
    y = (3 * x + 2 + 0.1 * normal(rng, points)).astype(np.float32)
    return Data({"w": normal(rng, 1), "b": zeros(1)}, {"x": x, "y": y})


def mlp(seed: int, batch: int = 64, pixels: int = 784, hidden: int = 128) -> Data:
    rng = np.random.default_rng(seed)
    weights = layer(rng, "0", hidden, pixels) | layer(rng, "2", 10, hidden)
    x = rng.random((batch, pixels), dtype=np.float32)
    return Data(weights, {"x": x, "y": rng.integers(0, 10, batch)})


def wide_mlp(seed: int, batch: int = 256, features: int = 1024, hidden: int = 4096) -> Data:
    rng = np.random.default_rng(seed)
    shapes = {"0": (hidden, features), "2": (hidden, hidden), "4": (10, hidden)}
    weights: Arrays = {}
    for name, shape in shapes.items():
        weights |= layer(rng, name, *shape)
    return Data(weights, {"x": normal(rng, batch, features), "y": rng.integers(0, 10, batch)})


def lenet(seed: int, batch: int) -> Data:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "0": (6, 1, 5, 5), "3": (16, 6, 5, 5), "7": (120, 256), "9": (84, 120), "11": (10, 84)
    }  # fmt: skip
    weights: Arrays = {}
    for name, shape in shapes.items():
        weights |= layer(rng, name, *shape)
    return Data(weights, {"x": normal(rng, batch, 1, 28, 28), "y": rng.integers(0, 10, batch)})


def op_chain(seed: int, rows: int = 8, columns: int = 8) -> Data:
    rng = np.random.default_rng(seed)
    return Data({name: normal(rng, rows, columns) for name in ("x", "a", "b")}, {})


def elementwise(seed: int, elements: int = 4_000_000) -> Data:
    return Data({"x": normal(np.random.default_rng(seed), elements)}, {})


def row_ops(seed: int, rows: int = 4096, columns: int = 1024) -> Data:
    rng = np.random.default_rng(seed)
    x = normal(rng, rows, columns)
    weight = 1 + np.float32(0.1) * normal(rng, columns)
    return Data({"x": x, "weight": weight, "bias": np.float32(0.1) * normal(rng, columns)}, {})


HEAD = 32  # width of an attention head
WORDS = 256


def transformer(
    seed: int, batch: int = 8, length: int = 128, width: int = 128, layers: int = 4
) -> Data:
    rng = np.random.default_rng(seed)
    weights = {
        "tokens.weight": he(rng, WORDS, width),
        "positions.weight": he(rng, length, width),
    }
    for i in range(layers):
        weights |= norm(f"blocks.{i}.norm1", width) | norm(f"blocks.{i}.norm2", width)
        weights |= layer(rng, f"blocks.{i}.qkv", 3 * width, width)
        weights |= layer(rng, f"blocks.{i}.out", width, width)
        weights |= layer(rng, f"blocks.{i}.up", 4 * width, width)
        weights |= layer(rng, f"blocks.{i}.down", width, 4 * width)
    weights |= norm("norm", width) | layer(rng, "head", WORDS, width)
    text = rng.integers(0, WORDS, (batch, length + 1))
    ids, targets = (np.ascontiguousarray(part) for part in (text[:, :-1], text[:, 1:]))
    return Data(weights, {"ids": ids, "targets": targets.reshape(-1), "places": np.arange(length)})


def residual_block(seed: int, batch: int = 16, channels: int = 64, side: int = 32) -> Data:
    rng = np.random.default_rng(seed)
    weights: Arrays = {}
    for conv, batch_norm in (("0", "1"), ("3", "4")):
        weights[f"{conv}.weight"] = he(rng, channels, channels, 3, 3)
        weights |= norm(batch_norm, channels)
    shape = (batch, channels, side, side)
    return Data(weights, {"x": normal(rng, *shape), "y": normal(rng, *shape)})


def newton_square_root(seed: int, values: int = 1000) -> Data:
    a = np.random.default_rng(seed).uniform(0.5, 4, values).astype(np.float32)
    return Data({"a": a}, {})


def recurrent(seed: int, steps: int = 50, batch: int = 32, hidden: int = 64) -> Data:
    rng = np.random.default_rng(seed)
    x, target = normal(rng, steps, batch, hidden), normal(rng, batch, 1)
    U, W, V = he(rng, hidden, hidden), he(rng, hidden, hidden), he(rng, 1, hidden)
    # W at half the he scale keeps 50 steps from saturating.
    weights = {"U": U, "W": W / 2, "b": zeros(hidden), "V": V, "c": zeros(1)}
    return Data(weights, {"x": x, "target": target})


def embedding(
    seed: int, batch: int = 64, length: int = 32, words: int = 10_000, width: int = 64
) -> Data:
    rng = np.random.default_rng(seed)
    weights = {"table.weight": he(rng, words, width)} | layer(rng, "head", 2, width)
    ids = rng.integers(0, words, (batch, length))
    return Data(weights, {"ids": ids, "y": rng.integers(0, 2, batch)})


def hessian_vector_product(
    seed: int, batch: int = 128, features: int = 32, hidden: int = 64
) -> Data:
    rng = np.random.default_rng(seed)
    inputs = {"x": normal(rng, batch, features), "y": normal(rng, batch, 1)}
    w1, w2 = he(rng, hidden, features), he(rng, 1, hidden)
    weights = {"w1": w1, "b1": zeros(hidden), "w2": w2, "b2": zeros(1)}
    for name, array in weights.items():
        inputs[f"v.{name}"] = normal(rng, *array.shape)
    return Data(weights, inputs)
