"""A line through 200 noisy points: gradients by gpugrad, the update by hand."""

import gpugrad as gg

gg.manual_seed(0)
x = gg.linspace(-1, 1, 200)
y = 3.0 * x + 2.0 + 0.1 * gg.randn(200)

w = gg.zeros(1, requires_grad=True)
b = gg.zeros(1, requires_grad=True)

for step in range(101):
    loss = ((w * x + b - y) ** 2).mean()
    loss.backward()
    with gg.no_grad():
        for parameter in (w, b):
            parameter -= 0.3 * parameter.grad
            parameter.grad = None
    if step % 25 == 0:
        print(f"step {step:3d}: loss {loss.item():.5f}")

print(f"y = {w.item():.2f} x + {b.item():.2f}")
