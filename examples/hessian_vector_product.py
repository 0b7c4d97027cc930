"""Newton's method without a Hessian: conjugate gradients need only products H v.

H v is the gradient of (gradient . v), so one backward through a recorded backward gives it at about
the cost of two gradients; the Hessian of n parameters, n gradients, is never formed.
"""

import gpugrad as gg


def rosenbrock(x):
    """Sum of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2, a curved valley; its minimum is 0 at ones."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def hessian_product(gradient, x, v):
    return gg.autograd.grad(gradient, x, grad_outputs=v, retain_graph=True)[0]


def newton_step(gradient, x, damping):
    """Conjugate gradients for (H + damping) d = -gradient; stops at negative curvature."""
    right = -gradient.detach()
    d, residual, direction = gg.zeros_like(right), right, right
    norm = residual.dot(residual)
    for _ in range(5 * x.numel()):
        along = hessian_product(gradient, x, direction) + damping * direction
        curvature = direction.dot(along)
        if curvature <= 0 or norm < 1e-20:
            break
        step = norm / curvature
        d, residual = d + step * direction, residual - step * along
        previous, norm = norm, residual.dot(residual)
        direction = residual + norm / previous * direction
    return d


def minimise(x, damping=1.0):
    """Damped Newton steps until the gradient vanishes; returns how many."""
    for iteration in range(200):
        value = rosenbrock(x)
        (gradient,) = gg.autograd.grad(value, x, create_graph=True)
        if gradient.detach().norm() < 1e-8:
            return iteration
        step = newton_step(gradient, x, damping)
        with gg.no_grad():
            better = rosenbrock(x + step) < value
            damping = damping / 4 if better else damping * 4
            if better:
                x += step
    return 200


if __name__ == "__main__":
    x = gg.full((10,), -0.5, dtype=gg.float64, requires_grad=True)
    print(f"{minimise(x)} iterations: f = {rosenbrock(x).item():.2e}")
    print("x =", [round(value, 6) for value in x.tolist()])
