"""A NumPy program with gradients: arrays in, arrays out, no copy on the way.

`from_numpy` wraps an array and `.array` hands it back, so the data, the weights and the update stay
plain NumPy; only the loss goes through tensors.
"""

import numpy as np

import gpugrad as gg

rng = np.random.default_rng(0)

# Two interleaved half circles.
angle = rng.uniform(0, np.pi, 400)
label = rng.integers(0, 2, 400)
points = np.stack([np.cos(angle) + label, np.sin(angle) * (1 - 2 * label) + 0.5 * label], axis=1)
points = (points + 0.1 * rng.standard_normal(points.shape)).astype(np.float32)

weights = [
    (rng.standard_normal((2, 32)) * 0.7).astype(np.float32),
    np.zeros(32, np.float32),
    (rng.standard_normal((32, 2)) * 0.2).astype(np.float32),
    np.zeros(2, np.float32),
]

# Wrapped once. The tensors and the arrays share memory: what NumPy writes, the tensors see.
inputs, targets = gg.from_numpy(points), gg.from_numpy(label)
parameters = [gg.from_numpy(array).requires_grad_() for array in weights]
assert all(tensor.array is array for tensor, array in zip(parameters, weights, strict=True))

for step in range(301):
    w1, b1, w2, b2 = parameters
    scores = gg.tanh(inputs @ w1 + b1) @ w2 + b2
    loss = gg.nn.functional.cross_entropy(scores, targets)
    gradients = gg.autograd.grad(loss, parameters)
    for array, gradient in zip(weights, gradients, strict=True):
        array -= 0.5 * gradient.array
    if step % 100 == 0:
        accuracy = (scores.array.argmax(axis=1) == label).mean()
        print(f"step {step}: loss {loss.item():.4f}, accuracy {accuracy:.1%}")
