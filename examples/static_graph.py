"""An explicit graph, as in TensorFlow 1, printed before and after folding and fusion.

python examples/static_graph.py
"""

import numpy as np

import gpugrad as gg
from gpugrad.static import passes
from gpugrad.static.session import Graph, Session, assign, gradients, placeholder, variable

rng = np.random.default_rng(0)

with Graph() as graph:
    x = placeholder(gg.float32, (64, 2), "x")
    target = placeholder(gg.float32, (64, 1), "target")
    w1 = variable(rng.normal(0, 1, (2, 16)), "w1", dtype=gg.float32)
    b1 = variable(np.zeros(16), "b1", dtype=gg.float32)
    w2 = variable(rng.normal(0, 0.3, (16, 1)), "w2", dtype=gg.float32)
    rate = gg.linspace(0, 1, 3)[1] * 0.4  # of constants alone: folded
    hidden = gg.sigmoid(x @ w1 + b1) * 2 - 1
    loss = ((hidden @ w2 - target) ** 2).mean()
    weights = [w1, b1, w2]
    slopes = gradients(loss, weights)
    train = [assign(w, w - rate * dw) for w, dw in zip(weights, slopes)]

program = graph.program([loss, *train])
print(f"as it was built, {program.num_ops} operations\n{program}\n")
for one in (passes.fold_constants, passes.fuse):
    program = passes.drop_dead(one(program))
    print(f"after {one.__name__}, {program.num_ops} operations\n{program}\n")

session = Session(graph)
points = rng.uniform(-1, 1, (64, 2))
inside = np.sign(points.sum(1, keepdims=True))
for step in range(301):
    value = session.run([loss, *train], {x: points, target: inside})[0]
    if step % 100 == 0:
        print(f"step {step}: loss {value:.3f}")
