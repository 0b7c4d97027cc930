"""Rows with gradients derived by hand, in NumPy: what a careful person writes without a library.

The programs are those of `workloads.py`, under the same names, from the same data. Plain NumPy, as
one would write it: arrays made anew in every step, updates in place. Not here: convolutions and
attention (w4, w8, w9), whose backward by hand nobody would call natural.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.data import Arrays, Data

Step = Callable[[], np.floating]
State = Callable[[], list[np.ndarray]]


# ---- updates ------------------------------------------------------------------------------------


def adam(weights: Arrays, lr: float, decay: float = 0.0) -> Callable[[Arrays], None]:
    """Returns the update, in place, by a dictionary of gradients (arXiv:1412.6980, 1711.05101)."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    first = {name: np.zeros_like(w) for name, w in weights.items()}
    second = {name: np.zeros_like(w) for name, w in weights.items()}
    t = 0

    def update(gradients: Arrays) -> None:
        nonlocal t
        t += 1
        rate, scale = lr / (1 - beta1**t), (1 - beta2**t) ** -0.5
        for name, g in gradients.items():
            w, m, v = weights[name], first[name], second[name]
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * (g * g)
            if decay:
                w *= 1 - lr * decay
            w -= rate * m / (np.sqrt(v) * scale + eps)

    return update


def keeping(run: Callable[[], tuple[np.floating, list[np.ndarray]]]) -> tuple[Step, State]:
    last: list[np.ndarray] = []

    def step() -> np.floating:
        loss, last[:] = run()
        return loss

    return step, lambda: last


def copies(arrays: Arrays) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


# ---- layers -------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[np.floating, np.ndarray]:
    """The mean loss and its gradient for the logits: (softmax - one hot) / rows."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(1, keepdims=True)
    loss = (np.log(total[:, 0]) - shifted[rows, labels]).mean()
    gradient = e / total
    gradient[rows, labels] -= 1
    return loss, gradient / np.float32(len(labels))


ROOT = np.float32(np.sqrt(2 / np.pi))
CUBIC = np.float32(0.044715)


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tanh form of arXiv:1606.08415, and its derivative."""
    square = x * x
    t = np.tanh(ROOT * x * (1 + CUBIC * square))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * ROOT * (1 + 3 * CUBIC * square)
    return 0.5 * x * (1 + t), slope


# ---- the rows -----------------------------------------------------------------------------------


def linear_regression(given: Data) -> tuple[Step, State]:
    x, y = given.inputs.values()
    w, b = copies(given.weights).values()

    def step() -> np.floating:
        error = w * x + b - y
        gradient = error * np.float32(2 / len(x))
        w[...] -= 0.1 * (gradient @ x)
        b[...] -= 0.1 * gradient.sum()
        return (error @ error) / len(x)

    return step, list


def mlp(given: Data) -> tuple[Step, State]:
    x, y = given.inputs.values()
    weights = copies(given.weights)
    w1, b1, w2, b2 = weights.values()
    update = adam(weights, 1e-3)

    def step() -> np.floating:
        hidden = np.maximum(x @ w1.T + b1, 0)
        loss, g2 = cross_entropy(hidden @ w2.T + b2, y)
        g1 = (g2 @ w2) * (hidden > 0)
        update({"0.weight": g1.T @ x, "0.bias": g1.sum(0),
                "2.weight": g2.T @ hidden, "2.bias": g2.sum(0)})  # fmt: skip
        return loss

    return step, list


def wide_mlp(given: Data) -> tuple[Step, State]:
    x, y = given.inputs.values()
    weights = copies(given.weights)
    w1, b1, w2, b2, w3, b3 = weights.values()
    update = adam(weights, 1e-4, decay=0.01)

    def step() -> np.floating:
        first = np.maximum(x @ w1.T + b1, 0)
        second, slope = gelu(first @ w2.T + b2)
        loss, g3 = cross_entropy(second @ w3.T + b3, y)
        g2 = (g3 @ w3) * slope
        g1 = (g2 @ w2) * (first > 0)
        update({"0.weight": g1.T @ x, "0.bias": g1.sum(0),
                "2.weight": g2.T @ first, "2.bias": g2.sum(0),
                "4.weight": g3.T @ second, "4.bias": g3.sum(0)})  # fmt: skip
        return loss

    return step, list


def op_chain(given: Data) -> tuple[Step, State]:
    x, a, b = given.weights.values()

    def run() -> tuple[np.floating, list[np.ndarray]]:
        y, kept = x, []
        for i in range(100):
            if i % 3 == 0:
                kept.append(y)
                y = y * a
            elif i % 3 == 1:
                y = y + b
            else:
                y = np.tanh(y)
                kept.append(y)
        g, ga, gb = np.ones_like(y), np.zeros_like(a), np.zeros_like(b)
        for i in reversed(range(100)):
            if i % 3 == 0:
                ga += g * kept.pop()
                g = g * a
            elif i % 3 == 1:
                gb += g
            else:
                t = kept.pop()
                g = g * (1 - t * t)
        return y.sum(), [g, ga, gb]

    return keeping(run)


def elementwise(given: Data) -> tuple[Step, State]:
    (x,) = given.weights.values()

    def run() -> tuple[np.floating, list[np.ndarray]]:
        t = np.tanh(0.7 * x + 0.3)
        s = 1 / (1 + np.exp(-1.3 * x))
        e = np.exp(-x * x)
        loss = (t * s + e).mean()
        g = 0.7 * (1 - t * t) * s + 1.3 * t * s * (1 - s) - 2 * x * e
        return loss, [g / x.size]

    return keeping(run)


def row_ops(given: Data) -> tuple[Step, State]:
    x, weight, bias = given.weights.values()

    def run() -> tuple[np.floating, list[np.ndarray]]:
        centred = x - x.mean(1, keepdims=True)
        scale = 1 / np.sqrt((centred * centred).mean(1, keepdims=True) + 1e-5)
        normed = centred * scale
        y, slope = gelu(normed * weight + bias)
        p = softmax(y)
        g = 2 * p * (p - (p * p).sum(1, keepdims=True)) * slope
        gn = g * weight
        along = (gn * normed).mean(1, keepdims=True)
        gx = scale * (gn - gn.mean(1, keepdims=True) - normed * along)
        return (p * p).sum(), [gx, (g * normed).sum(0), g.sum(0)]

    return keeping(run)


def newton_square_root(given: Data) -> tuple[Step, State]:
    (a,) = given.weights.values()

    def run() -> tuple[np.floating, list[np.ndarray]]:
        x, moved = np.ones_like(a), np.inf
        kept = []
        while moved > 1e-4:
            kept.append(x)
            x = 0.5 * (x + a / x)
            moved = np.abs(x - kept[-1]).max()
        g, ga = np.ones_like(a), np.zeros_like(a)
        for before in reversed(kept):
            ga += 0.5 * g / before
            g = 0.5 * g * (1 - a / (before * before))
        return x.sum(), [ga]

    return keeping(run)


def recurrent(given: Data) -> tuple[Step, State]:
    x, target = given.inputs.values()
    weights = copies(given.weights)
    U, W, b, V, c = weights.values()

    def step() -> np.floating:
        h = [np.zeros(x.shape[1:], x.dtype)]
        for inputs in x:
            h.append(np.tanh(inputs @ U.T + b + h[-1] @ W.T))
        error = h[-1] @ V.T + c - target
        ge = error * np.float32(2 / error.size)
        gradients = {name: np.zeros_like(w) for name, w in weights.items()}
        gradients["V"], gradients["c"] = ge.T @ h[-1], ge.sum(0)
        g = ge @ V
        for inputs, before, after in zip(x[::-1], h[-2::-1], h[:0:-1]):
            g = g * (1 - after * after)
            gradients["U"] += g.T @ inputs
            gradients["W"] += g.T @ before
            gradients["b"] += g.sum(0)
            g = g @ W
        for name, w in weights.items():
            w -= 0.01 * gradients[name]
        return (error * error).mean()

    return step, list


def embedding(given: Data) -> tuple[Step, State]:
    ids, y = given.inputs.values()
    weights = copies(given.weights)
    table, w, b = weights.values()
    update = adam(weights, 1e-3)

    def step() -> np.floating:
        mean = table[ids].mean(1)
        loss, g = cross_entropy(mean @ w.T + b, y)
        rows = (g @ w) / np.float32(ids.shape[1])
        gt = np.zeros_like(table)
        np.add.at(gt, ids, rows[:, None])
        update({"table.weight": gt, "head.weight": g.T @ mean, "head.bias": g.sum(0)})
        return loss

    return step, list


def hessian_vector_product(given: Data) -> tuple[Step, State]:
    """The derivative of the gradient along v: each line of the gradient and its tangent."""
    x, y, *vector = given.inputs.values()
    w1, b1, w2, b2 = given.weights.values()
    v1, c1, v2, c2 = vector

    def run() -> tuple[np.floating, list[np.ndarray]]:
        h = np.tanh(x @ w1.T + b1)
        slope = 1 - h * h
        error = h @ w2.T + b2 - y
        factor = np.float32(2 / error.size)
        dh = slope * (x @ v1.T + c1)
        g2 = factor * error
        dg2 = factor * (dh @ w2.T + h @ v2.T + c2)
        gh = g2 @ w2
        dg1 = (dg2 @ w2 + g2 @ v2) * slope - 2 * gh * h * dh
        products = [dg1.T @ x, dg1.sum(0), dg2.T @ h + g2.T @ dh, dg2.sum(0)]
        return (error * error).mean(), products

    return keeping(run)
