"""An own gradient: a straight-through estimator trains weights that are rounded to integers."""

import gpugrad as gg


class RoundThrough(gg.autograd.Function):
    """round(x), whose backward passes the gradient on where |x| <= limit instead of zero."""

    @staticmethod
    def forward(ctx, x, limit):
        ctx.save_for_backward(x)
        ctx.limit = limit
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= ctx.limit), None


gg.manual_seed(0)
inputs = gg.randn(256, 8)
targets = inputs @ gg.tensor([3.0, -2.0, 0.0, 1.0, -1.0, 2.0, 0.0, -3.0])

# Weights that may only be integers, found by gradient descent on real-valued ones.
weights = gg.zeros(8, requires_grad=True)
for step in range(201):
    loss = ((inputs @ RoundThrough.apply(weights, 4.0) - targets) ** 2).mean()
    weights.grad = None
    loss.backward()
    with gg.no_grad():
        weights -= 0.02 * weights.grad
    if step % 50 == 0:
        print(f"step {step:3d}: loss {loss.item():.4f}")

print("integers found:", [int(value) for value in weights.detach().round().tolist()])
