"""The rows for TensorFlow: variables, `tf.GradientTape`, and TensorFlow's own fused update kernels.

The programs are those of `workloads.py`, under the same names, from the same data. `wrap` is
applied to the step: the identity for eager, `tf.function`, or `tf.function(jit_compile=True)`.
Images are channels-last, as TensorFlow likes them. Keras' optimizers place epsilon elsewhere and
cost an eager step more; the kernels below them (`tf.raw_ops.ResourceApply...`) are used directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from benchmarks.data import HEAD, WORDS, Arrays, Data

Step = Callable[[], Any]
State = Callable[[], list[Any]]
Wrap = Callable[[Step], Step]
Tensors = dict[str, Any]
Update = Callable[[list[Any], list[Any]], None]


def variables(arrays: Arrays) -> Tensors:
    return {name: tf.Variable(array) for name, array in arrays.items()}


def constants(arrays: Arrays) -> Tensors:
    return {name: tf.constant(array) for name, array in arrays.items()}


# ---- updates ------------------------------------------------------------------------------------


def sgd(lr: float) -> Update:
    def update(weights: list[Any], gradients: list[Any]) -> None:
        for w, g in zip(weights, gradients):
            tf.raw_ops.ResourceApplyGradientDescent(var=w.handle, alpha=lr, delta=g)

    return update


def momentum(weights: Tensors, lr: float, factor: float) -> Update:
    memory = [tf.Variable(tf.zeros_like(w)) for w in weights.values()]

    def update(weights: list[Any], gradients: list[Any]) -> None:
        for w, m, g in zip(weights, memory, gradients):
            tf.raw_ops.ResourceApplyMomentum(
                var=w.handle, accum=m.handle, lr=lr, grad=g, momentum=factor
            )

    return update


def adam(weights: Tensors, lr: float, decay: float = 0.0) -> Update:
    """The kernel's epsilon is that of Kingma and Ba's second form (arXiv:1412.6980, section 2)."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    first = [tf.Variable(tf.zeros_like(w)) for w in weights.values()]
    second = [tf.Variable(tf.zeros_like(w)) for w in weights.values()]
    power1, power2 = tf.Variable(1.0), tf.Variable(1.0)

    def update(weights: list[Any], gradients: list[Any]) -> None:
        beta1_power = power1.assign(power1 * beta1)
        beta2_power = power2.assign(power2 * beta2)
        epsilon = eps * tf.sqrt(1 - beta2_power)
        for w, m, v, g in zip(weights, first, second, gradients):
            if decay:
                w.assign(w * (1 - lr * decay))
            tf.raw_ops.ResourceApplyAdam(
                var=w.handle, m=m.handle, v=v.handle, grad=g, lr=lr, beta1=beta1, beta2=beta2,
                beta1_power=beta1_power, beta2_power=beta2_power, epsilon=epsilon,
            )  # fmt: skip

    return update


def training(
    weights: Tensors, loss_of: Callable[[], Any], update: Update, wrap: Wrap
) -> tuple[Step, State]:
    parameters = list(weights.values())

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of()
        update(parameters, dense(tape.gradient(loss, parameters)))
        return loss

    return wrap(step), list


def measuring(weights: Tensors, loss_of: Callable[[], Any], wrap: Wrap) -> tuple[Step, State]:
    parameters = list(weights.values())

    def loss_and_gradients() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of()
        return loss, tape.gradient(loss, parameters)

    return keeping(wrap(loss_and_gradients))


def keeping(run: Callable[[], tuple[Any, list[Any]]]) -> tuple[Step, State]:
    last: list[Any] = []

    def step() -> Any:
        loss, last[:] = run()
        return loss

    return step, lambda: last


def dense(gradients: list[Any]) -> list[Any]:
    """The gradient of a table's rows as one of the whole table, as every other library has it."""
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


# ---- layers -------------------------------------------------------------------------------------


def linear(weights: Tensors, name: str, x: Any) -> Any:
    product = tf.matmul(x, weights[f"{name}.weight"], transpose_b=True)
    return tf.nn.bias_add(product, weights[f"{name}.bias"])


def cross_entropy(logits: Any, labels: Any) -> Any:
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, bias, weight, 1e-5)


def conv_relu_pool(weights: Tensors, name: str, x: Any) -> Any:
    y = tf.nn.conv2d(x, weights[f"{name}.weight"], 1, "VALID")
    y = tf.nn.relu(tf.nn.bias_add(y, weights[f"{name}.bias"]))
    return tf.nn.max_pool2d(y, 2, 2, "VALID")


def channels_last(weights: Arrays) -> Arrays:
    """Weights of convolutions as (height, width, inputs, outputs); others as they are."""
    return {
        name: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        for name, array in weights.items()
    }


# ---- the rows -----------------------------------------------------------------------------------


def linear_regression(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights, inputs = variables(given.weights), constants(given.inputs)

    def loss_of() -> Any:
        return tf.reduce_mean(tf.square(weights["w"] * inputs["x"] + weights["b"] - inputs["y"]))

    return training(weights, loss_of, sgd(0.1), wrap)


def mlp(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights, inputs = variables(given.weights), constants(given.inputs)

    def loss_of() -> Any:
        hidden = tf.nn.relu(linear(weights, "0", inputs["x"]))
        return cross_entropy(linear(weights, "2", hidden), inputs["y"])

    return training(weights, loss_of, adam(weights, 1e-3), wrap)


def wide_mlp(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights, inputs = variables(given.weights), constants(given.inputs)

    def loss_of() -> Any:
        hidden = tf.nn.relu(linear(weights, "0", inputs["x"]))
        hidden = tf.nn.gelu(linear(weights, "2", hidden), approximate=True)
        return cross_entropy(linear(weights, "4", hidden), inputs["y"])

    return training(weights, loss_of, adam(weights, 1e-4, decay=0.01), wrap)


def lenet(given: Data, wrap: Wrap) -> tuple[Step, State]:
    arrays = channels_last(given.weights)
    flat = arrays["7.weight"]  # its inputs were flattened channels first
    arrays["7.weight"] = flat.reshape(-1, 16, 4, 4).transpose(0, 2, 3, 1).reshape(flat.shape)
    weights = variables(arrays)
    x, y = tf.constant(given.inputs["x"].transpose(0, 2, 3, 1)), tf.constant(given.inputs["y"])

    def loss_of() -> Any:
        maps = conv_relu_pool(weights, "3", conv_relu_pool(weights, "0", x))
        hidden = tf.nn.relu(linear(weights, "7", tf.reshape(maps, (x.shape[0], -1))))
        hidden = tf.nn.relu(linear(weights, "9", hidden))
        return cross_entropy(linear(weights, "11", hidden), y)

    return training(weights, loss_of, momentum(weights, 1e-3, 0.9), wrap)


def op_chain(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights = variables(given.weights)

    def loss_of() -> Any:
        y, a, b = (tf.convert_to_tensor(weights[name]) for name in "xab")  # read once
        for i in range(100):
            if i % 3 == 0:
                y = y * a
            elif i % 3 == 1:
                y = y + b
            else:
                y = tf.tanh(y)
        return tf.reduce_sum(y)

    return measuring(weights, loss_of, wrap)


def elementwise(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights = variables(given.weights)

    def loss_of() -> Any:
        x = tf.convert_to_tensor(weights["x"])
        return tf.reduce_mean(tf.tanh(0.7 * x + 0.3) * tf.sigmoid(1.3 * x) + tf.exp(-x * x))

    return measuring(weights, loss_of, wrap)


def row_ops(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights = variables(given.weights)

    def loss_of() -> Any:
        y = layer_norm(tf.convert_to_tensor(weights["x"]), weights["weight"], weights["bias"])
        y = tf.nn.softmax(tf.nn.gelu(y, approximate=True))
        return tf.reduce_sum(y * y)

    return measuring(weights, loss_of, wrap)


def transformer(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights, inputs = variables(given.weights), constants(given.inputs)
    layers = sum(name.endswith("qkv.bias") for name in given.weights)
    (batch, length), width = inputs["ids"].shape, given.weights["norm.weight"].size
    heads = width // HEAD
    hidden = (1 - tf.linalg.band_part(tf.ones((length, length)), -1, 0)) * -1e9  # the future

    def rows(name: str, x: Any, outputs: int) -> Any:
        y = linear(weights, name, tf.reshape(x, (batch * length, -1)))
        return tf.reshape(y, (batch, length, outputs))

    def normed(name: str, x: Any) -> Any:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def block(name: str, x: Any) -> Any:
        qkv = rows(f"{name}.qkv", normed(f"{name}.norm1", x), 3 * width)
        qkv = tf.transpose(tf.reshape(qkv, (batch, length, 3, heads, HEAD)), (2, 0, 3, 1, 4))
        q, k, v = tf.unstack(qkv)
        scores = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * HEAD**-0.5 + hidden)
        y = tf.reshape(tf.transpose(tf.matmul(scores, v), (0, 2, 1, 3)), x.shape)
        x = x + rows(f"{name}.out", y, width)
        y = tf.nn.gelu(rows(f"{name}.up", normed(f"{name}.norm2", x), 4 * width), approximate=True)
        return x + rows(f"{name}.down", y, width)

    def loss_of() -> Any:
        x = tf.gather(weights["tokens.weight"], inputs["ids"])
        x = x + tf.gather(weights["positions.weight"], inputs["places"])
        for i in range(layers):
            x = block(f"blocks.{i}", x)
        logits = tf.reshape(rows("head", normed("norm", x), WORDS), (-1, WORDS))
        return cross_entropy(logits, inputs["targets"])

    return training(weights, loss_of, adam(weights, 3e-4, decay=0.01), wrap)


def residual_block(given: Data, wrap: Wrap) -> tuple[Step, State]:
    """The running statistics of the batch norms are part of the step, as they are in torch."""
    weights = variables(channels_last(given.weights))
    x, y = (tf.constant(a.transpose(0, 2, 3, 1)) for a in given.inputs.values())
    channels = given.weights["1.weight"].size
    running = {
        name: (tf.Variable(tf.zeros(channels)), tf.Variable(tf.ones(channels)))
        for name in ("1", "4")
    }

    def batch_norm(name: str, x: Any) -> Any:
        scale, offset = weights[f"{name}.weight"], weights[f"{name}.bias"]
        found, *batch = tf.compat.v1.nn.fused_batch_norm(x, scale, offset, epsilon=1e-5)
        for kept, new in zip(running[name], batch):
            kept.assign_sub(0.1 * (kept - new))
        return found

    def loss_of() -> Any:
        z = batch_norm("1", tf.nn.conv2d(x, weights["0.weight"], 1, "SAME"))
        z = batch_norm("4", tf.nn.conv2d(tf.nn.relu(z), weights["3.weight"], 1, "SAME"))
        return tf.reduce_mean(tf.square(tf.nn.relu(x + z) - y))

    return training(weights, loss_of, sgd(0.01), wrap)


MOST_ITERATIONS = 16  # of Newton's method, a bound that XLA needs for the gradient; it takes 6


def newton_square_root(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights = variables(given.weights)

    def loss_of() -> Any:
        a = tf.convert_to_tensor(weights["a"])

        def newton(x: Any, moved: Any) -> Any:
            new = 0.5 * (x + a / x)
            return new, tf.reduce_max(tf.abs(new - x))

        x, _ = tf.while_loop(
            lambda x, moved: moved > 1e-4, newton, (tf.ones_like(a), tf.constant(float("inf"))),
            maximum_iterations=MOST_ITERATIONS,
        )  # fmt: skip
        return tf.reduce_sum(x)

    return measuring(weights, loss_of, wrap)


def recurrent(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights, inputs = variables(given.weights), constants(given.inputs)
    steps, batch, hidden = given.inputs["x"].shape

    def loss_of() -> Any:
        U, W, b, V, c = (tf.convert_to_tensor(w) for w in weights.values())
        h = tf.zeros((batch, hidden))
        for x in tf.unstack(inputs["x"], steps):
            h = tf.tanh(tf.matmul(x, U, transpose_b=True) + b + tf.matmul(h, W, transpose_b=True))
        error = tf.matmul(h, V, transpose_b=True) + c - inputs["target"]
        return tf.reduce_mean(tf.square(error))

    return training(weights, loss_of, sgd(0.01), wrap)


def embedding(given: Data, wrap: Wrap) -> tuple[Step, State]:
    weights, inputs = variables(given.weights), constants(given.inputs)

    def loss_of() -> Any:
        mean = tf.reduce_mean(tf.gather(weights["table.weight"], inputs["ids"]), 1)
        return cross_entropy(linear(weights, "head", mean), inputs["y"])

    return training(weights, loss_of, adam(weights, 1e-3), wrap)


def hessian_vector_product(given: Data, wrap: Wrap) -> tuple[Step, State]:
    """Forward mode over reverse mode, as TensorFlow's guide has it."""
    weights, inputs = variables(given.weights), constants(given.inputs)
    parameters = list(weights.values())
    vector = [inputs[f"v.{name}"] for name in weights]

    def product() -> Any:
        with tf.autodiff.ForwardAccumulator(parameters, vector) as along:
            with tf.GradientTape() as tape:
                hidden = tf.tanh(
                    tf.matmul(inputs["x"], weights["w1"], transpose_b=True) + weights["b1"]
                )
                output = tf.matmul(hidden, weights["w2"], transpose_b=True) + weights["b2"]
                loss = tf.reduce_mean(tf.square(output - inputs["y"]))
            gradients = tape.gradient(loss, parameters)
        return loss, along.jvp(gradients)

    return keeping(wrap(product))
