"""The rows for JAX: pure functions of weights and inputs, under `jax.jit`, weights donated.

The programs are those of `workloads.py`, under the same names, from the same data. Images are
channels-last, as XLA likes them on a CPU. Inputs are arguments of the compiled functions: a
constant would be folded away.

Calls of a compiled function return before their work is done. A step that trains needs the weights
of the step before, so waiting at the end of a sample is enough; steps that only take gradients are
independent of each other and wait for their own result, else two of them would run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn

from benchmarks.data import HEAD, WORDS, Arrays, Data

Step = Callable[[], jax.Array]
State = Callable[[], list[jax.Array]]
Tree = dict[str, jax.Array]
Loss = Callable[[Tree, Tree], jax.Array]


def on_device(arrays: Arrays) -> Tree:
    return {name: jnp.array(array) for name, array in arrays.items()}


# ---- updates ------------------------------------------------------------------------------------


class Optimizer(NamedTuple):
    """`start(weights)` is its memory; `update(weights, gradients, memory)` the new pair."""

    start: Callable[[Tree], Any]
    update: Callable[[Tree, Tree, Any], tuple[Tree, Any]]


def sgd(lr: float) -> Optimizer:
    def update(weights: Tree, gradients: Tree, memory: None) -> tuple[Tree, None]:
        return jax.tree.map(lambda w, g: w - lr * g, weights, gradients), memory

    return Optimizer(lambda weights: None, update)


def momentum(lr: float, factor: float) -> Optimizer:
    def update(weights: Tree, gradients: Tree, memory: Tree) -> tuple[Tree, Tree]:
        memory = jax.tree.map(lambda m, g: factor * m + g, memory, gradients)
        return jax.tree.map(lambda w, m: w - lr * m, weights, memory), memory

    return Optimizer(lambda weights: jax.tree.map(jnp.zeros_like, weights), update)


def adam(lr: float, decay: float = 0.0) -> Optimizer:
    """AdamW if there is a decay (Loshchilov and Hutter, arXiv:1711.05101)."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def start(weights: Tree) -> tuple[Tree, Tree, jax.Array]:
        return jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.zeros_like, weights), 0.0

    def update(weights: Tree, gradients: Tree, memory: Any) -> tuple[Tree, Any]:
        m, v, t = memory
        t = t + 1.0
        m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, gradients)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, v, gradients)
        rate, scale = lr / (1 - beta1**t), 1 / jnp.sqrt(1 - beta2**t)

        def one(w: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            return w * (1 - lr * decay) - rate * m / (jnp.sqrt(v) * scale + eps)

        return jax.tree.map(one, weights, m, v), (m, v, t)

    return Optimizer(start, update)


def training(given: Data, loss_of: Loss, optimizer: Optimizer) -> tuple[Step, State]:
    inputs, weights = on_device(given.inputs), on_device(given.weights)
    memory = optimizer.start(weights)

    @partial(jax.jit, donate_argnums=(0, 1))
    def run(weights: Tree, memory: Any, inputs: Tree) -> tuple[jax.Array, Tree, Any]:
        loss, gradients = jax.value_and_grad(loss_of)(weights, inputs)
        return loss, *optimizer.update(weights, gradients, memory)

    def step() -> jax.Array:
        nonlocal weights, memory
        loss, weights, memory = run(weights, memory, inputs)
        return loss

    return step, list


def measuring(
    given: Data, function: Callable[[Tree, Tree], tuple[jax.Array, Tree]]
) -> tuple[Step, State]:
    """Steps of a function to a loss and its gradients, which changes no weights."""
    run = jax.jit(function)
    inputs, weights = on_device(given.inputs), on_device(given.weights)
    last: Tree = {}

    def step() -> jax.Array:
        nonlocal last
        loss, last = jax.block_until_ready(run(weights, inputs))
        return loss

    return step, lambda: [last[name] for name in given.weights]


# ---- layers -------------------------------------------------------------------------------------


def linear(weights: Tree, name: str, x: jax.Array) -> jax.Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], axis=1)
    return -picked.mean()


def layer_norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * weight + bias


def conv(x: jax.Array, weight: jax.Array, padding: str = "VALID") -> jax.Array:
    """Channels last; the weight is (height, width, inputs, outputs)."""
    return lax.conv_general_dilated(
        x, weight, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: jax.Array) -> jax.Array:
    """Of 2 x 2, disjoint: a maximum of a reshape, on a CPU 1.2 times faster than `reduce_window`.

    Its gradient shares ties; after a relu they are zeros, whose gradient is zero either way.
    """
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def channels_last(weights: Arrays) -> Arrays:
    """Weights of convolutions as (height, width, inputs, outputs); others as they are."""
    return {
        name: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        for name, array in weights.items()
    }


# ---- the rows -----------------------------------------------------------------------------------


def linear_regression(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        return jnp.mean((weights["w"] * inputs["x"] + weights["b"] - inputs["y"]) ** 2)

    return training(given, loss_of, sgd(0.1))


def mlp(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        hidden = nn.relu(linear(weights, "0", inputs["x"]))
        return cross_entropy(linear(weights, "2", hidden), inputs["y"])

    return training(given, loss_of, adam(1e-3))


def wide_mlp(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        hidden = nn.relu(linear(weights, "0", inputs["x"]))
        hidden = nn.gelu(linear(weights, "2", hidden), approximate=True)
        return cross_entropy(linear(weights, "4", hidden), inputs["y"])

    return training(given, loss_of, adam(1e-4, decay=0.01))


def lenet(given: Data) -> tuple[Step, State]:
    weights = channels_last(given.weights)
    flat = weights["7.weight"]  # its inputs were flattened channels first
    weights["7.weight"] = flat.reshape(-1, 16, 4, 4).transpose(0, 2, 3, 1).reshape(flat.shape)
    inputs = given.inputs | {"x": given.inputs["x"].transpose(0, 2, 3, 1)}

    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        x = max_pool(nn.relu(conv(inputs["x"], weights["0.weight"]) + weights["0.bias"]))
        x = max_pool(nn.relu(conv(x, weights["3.weight"]) + weights["3.bias"]))
        x = nn.relu(linear(weights, "7", x.reshape(x.shape[0], -1)))
        x = linear(weights, "11", nn.relu(linear(weights, "9", x)))
        return cross_entropy(x, inputs["y"])

    return training(Data(weights, inputs), loss_of, momentum(1e-3, 0.9))


def op_chain(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        y, a, b = weights["x"], weights["a"], weights["b"]
        for i in range(100):
            if i % 3 == 0:
                y = y * a
            elif i % 3 == 1:
                y = y + b
            else:
                y = jnp.tanh(y)
        return y.sum()

    return measuring(given, jax.value_and_grad(loss_of))


def elementwise(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        x = weights["x"]
        return (jnp.tanh(0.7 * x + 0.3) * nn.sigmoid(1.3 * x) + jnp.exp(-x * x)).mean()

    return measuring(given, jax.value_and_grad(loss_of))


def row_ops(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        y = layer_norm(weights["x"], weights["weight"], weights["bias"])
        y = nn.softmax(nn.gelu(y, approximate=True))
        return (y * y).sum()

    return measuring(given, jax.value_and_grad(loss_of))


def transformer(given: Data) -> tuple[Step, State]:
    layers = sum(name.endswith("qkv.bias") for name in given.weights)

    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        def normed(name: str, x: jax.Array) -> jax.Array:
            return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def block(name: str, x: jax.Array) -> jax.Array:
            batch, length, width = x.shape
            qkv = linear(weights, f"{name}.qkv", normed(f"{name}.norm1", x))
            q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, width // HEAD, HEAD), 2, 0)
            y = nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
            x = x + linear(weights, f"{name}.out", y)
            y = linear(weights, f"{name}.up", normed(f"{name}.norm2", x))
            return x + linear(weights, f"{name}.down", nn.gelu(y, approximate=True))

        x = weights["tokens.weight"][inputs["ids"]] + weights["positions.weight"][inputs["places"]]
        for i in range(layers):
            x = block(f"blocks.{i}", x)
        logits = linear(weights, "head", normed("norm", x)).reshape(-1, WORDS)
        return cross_entropy(logits, inputs["targets"])

    return training(given, loss_of, adam(3e-4, decay=0.01))


def residual_block(given: Data) -> tuple[Step, State]:
    """The running statistics of the batch norms are part of the step, as they are in torch."""
    inputs = on_device({name: a.transpose(0, 2, 3, 1) for name, a in given.inputs.items()})
    weights = on_device(channels_last(given.weights))
    channels = given.weights["1.weight"].size
    running = {
        name: {"mean": jnp.zeros(channels), "variance": jnp.ones(channels)} for name in ("1", "4")
    }

    def batch_norm(weights: Tree, running: dict, name: str, x: jax.Array) -> jax.Array:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        unbiased = variance * (x.size / channels / (x.size / channels - 1))
        old = running[name]
        running[name] = {
            "mean": 0.9 * old["mean"] + 0.1 * mean,
            "variance": 0.9 * old["variance"] + 0.1 * unbiased,
        }
        scale = lax.rsqrt(variance + 1e-5) * weights[f"{name}.weight"]
        return (x - mean) * scale + weights[f"{name}.bias"]

    def loss_of(weights: Tree, running: dict, inputs: Tree) -> tuple[jax.Array, dict]:
        x, running = inputs["x"], dict(running)
        y = batch_norm(weights, running, "1", conv(x, weights["0.weight"], "SAME"))
        y = batch_norm(weights, running, "4", conv(nn.relu(y), weights["3.weight"], "SAME"))
        return jnp.mean((nn.relu(x + y) - inputs["y"]) ** 2), running

    update = sgd(0.01).update

    @partial(jax.jit, donate_argnums=(0, 1))
    def run(weights: Tree, running: dict, inputs: Tree) -> tuple[jax.Array, Tree, dict]:
        of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, running), gradients = of(weights, running, inputs)
        return loss, update(weights, gradients, None)[0], running

    def step() -> jax.Array:
        nonlocal weights, running
        loss, weights, running = run(weights, running, inputs)
        return loss

    return step, list


MOST_ITERATIONS = 16  # of Newton's method; from 1 to the roots of 0.5 ... 4 it takes 6


def newton_square_root(given: Data) -> tuple[Step, State]:
    """`lax.while_loop` has no reverse mode: a scan of bounded length whose steps can be skipped."""

    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        a = weights["a"]

        def newton(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = 0.5 * (x + a / x)
            return new, jnp.abs(new - x).max()

        def one(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[Any, None]:
            x, moved = carry
            return lax.cond(moved > 1e-4, newton, lambda x: (x, moved), x), None

        start = jnp.ones_like(a), jnp.float32(np.inf)
        (x, _), _ = lax.scan(one, start, None, length=MOST_ITERATIONS)
        return x.sum()

    return measuring(given, jax.value_and_grad(loss_of))


def recurrent(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        def one(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ weights["U"].T + weights["b"] + h @ weights["W"].T), None

        x = inputs["x"]
        # Unrolled it is 1.5 times faster than as a loop.
        h, _ = lax.scan(one, jnp.zeros(x.shape[1:], x.dtype), x, unroll=True)
        return jnp.mean((h @ weights["V"].T + weights["c"] - inputs["target"]) ** 2)

    return training(given, loss_of, sgd(0.01))


def embedding(given: Data) -> tuple[Step, State]:
    def loss_of(weights: Tree, inputs: Tree) -> jax.Array:
        mean = weights["table.weight"][inputs["ids"]].mean(1)
        return cross_entropy(linear(weights, "head", mean), inputs["y"])

    return training(given, loss_of, adam(1e-3))


def hessian_vector_product(given: Data) -> tuple[Step, State]:
    """Forward mode over reverse mode, which is JAX's advice."""

    def product(weights: Tree, inputs: Tree) -> tuple[jax.Array, Tree]:
        def loss_of(weights: Tree) -> jax.Array:
            hidden = jnp.tanh(inputs["x"] @ weights["w1"].T + weights["b1"])
            return jnp.mean((hidden @ weights["w2"].T + weights["b2"] - inputs["y"]) ** 2)

        vector = {name: inputs[f"v.{name}"] for name in weights}
        (loss, _), (_, along) = jax.jvp(jax.value_and_grad(loss_of), (weights,), (vector,))
        return loss, along

    return measuring(given, product)
