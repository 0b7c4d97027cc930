"""Comparing gradients with finite differences."""

from __future__ import annotations

from ..backend.arrays import array_module, to_numpy
from ..config import grad_mode
from ..tensor import Tensor, wrap
from .engine import grad


def _as_tuple(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _numerical(function, inputs, k, cotangents, eps):
    """d(sum of cotangents * outputs) / d inputs[k] by central differences."""
    x = inputs[k].array
    result = array_module(x).zeros_like(x)
    flat, out = x.reshape(-1), result.reshape(-1)

    def value():
        with grad_mode(False):
            outputs = _as_tuple(function(*inputs))
        return sum(float((o.array * c).sum()) for o, c in zip(outputs, cotangents, strict=True))

    for i in range(flat.size):
        old = flat[i].item()
        flat[i] = old + eps
        above = value()
        flat[i] = old - eps
        below = value()
        flat[i] = old
        out[i] = (above - below) / (2 * eps)
    return result


def gradcheck(
    function,
    inputs,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Check the gradients of ``function(*inputs)`` against central differences, for random
    cotangents.

    Inputs that require gradients should be float64 and contiguous. Raises GradcheckError with the
    input and the largest difference (or returns False).

    >>> import gpugrad as gg
    >>> x = gg.tensor([0.3, 0.7], dtype=gg.float64, requires_grad=True)
    >>> gg.autograd.gradcheck(gg.tanh, (x,))
    True
    """
    inputs = _as_tuple(inputs)
    for k, x in enumerate(inputs):
        if isinstance(x, Tensor) and x.requires_grad and x.dtype != "float64":
            raise ValueError(f"gradcheck: input {k} is {x.dtype}; finite differences need float64")
        if isinstance(x, Tensor) and x.requires_grad and not x.is_contiguous():
            raise ValueError(f"gradcheck: input {k} is not contiguous; pass input.contiguous()")
    outputs = [o for o in _as_tuple(function(*inputs)) if isinstance(o, Tensor)]
    checked = [k for k, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise ValueError("gradcheck expects at least one input tensor to require gradient")
    xp = array_module(outputs[0].array)
    cotangents = [
        xp.cos(xp.arange(o.array.size, dtype=o.dtype) + 1.0).reshape(o.shape) for o in outputs
    ]
    live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if live:
        found = grad(
            [o for o, _ in live],
            [inputs[k] for k in checked],
            [wrap(c) for _, c in live],
            allow_unused=True,
            retain_graph=True,
        )
    else:
        found = [None] * len(checked)
    for k, g in zip(checked, found, strict=True):
        expected = _numerical(
            lambda *a: [o for o in _as_tuple(function(*a)) if isinstance(o, Tensor)],
            inputs,
            k,
            cotangents,
            eps,
        )
        actual = to_numpy(g.array) if g is not None else 0 * to_numpy(expected)
        difference = abs(actual - to_numpy(expected))
        allowed = atol + rtol * abs(to_numpy(expected))
        if not (difference <= allowed).all():
            if raise_exception:
                raise GradcheckError(
                    f"Jacobian mismatch for input {k} of shape {tuple(inputs[k].shape)}: largest "
                    f"difference "
                    f"{difference.max():.3g}\nnumerical: {expected}\nanalytical: {actual}"
                )
            return False
    return True


class GradcheckError(RuntimeError):
    """A gradient differs from its finite difference."""


def gradgradcheck(
    function,
    inputs,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """``gradcheck`` of the gradient itself: second derivatives."""
    inputs = _as_tuple(inputs)
    checked = [k for k, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]

    def first_order(*args):
        outputs = [
            o for o in _as_tuple(function(*args)) if isinstance(o, Tensor) and o.requires_grad
        ]
        xp = array_module(outputs[0].array)
        seeds = [
            wrap(xp.sin(xp.arange(o.array.size, dtype=o.dtype) + 0.5).reshape(o.shape))
            for o in outputs
        ]
        results = grad(
            outputs, [args[k] for k in checked], seeds, create_graph=True, allow_unused=True
        )
        return tuple(r for r in results if r is not None)

    def evaluate(*args):
        with grad_mode(True):  # the inner gradient needs the tape even where only values are wanted
            return first_order(*args)

    return gradcheck(
        evaluate, inputs, eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception
    )
