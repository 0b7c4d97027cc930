"""Control flow as functions: ``cond`` with torch's arguments, ``while_loop`` and ``scan`` with
JAX's.

They run the functions they are given as they are, on tensors, with gradients and inside of every
transformation. What they add to ``if``, ``while`` and ``for``: checks of what goes round, the
results of all steps in one tensor, and ``vmap`` over branches that differ between the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

from . import tree
from .backend.arrays import StandIn, is_array
from .batching import Batched
from .config import grad_mode
from .creation import as_tensor, empty, zeros
from .functions import stack, unbind, where
from .tensor import Tensor

_NUMBERS = (bool, int, float, complex)


def cond(pred, true_fn: Callable, false_fn: Callable, operands: Sequence = ()) -> Any:
    """``true_fn(*operands)`` if ``pred`` is true, else ``false_fn(*operands)``.

    ``pred`` is a number or a tensor of one element, ``operands`` a tuple or list, of tensors if
    ``pred`` is one, nested as you like. Only the branch that is chosen runs. Inside ``vmap``, where
    ``pred`` differs between the examples, both run and each example takes its own; then both have
    to return the same structure, shapes and dtypes.

    A compiled function records the branch that is taken, with the outcome as its condition: a call
    with the other outcome records the other branch, and from then on both are replayed.

    Raises RuntimeError for another ``pred``, branches that cannot be called and other operands.

    >>> import gpugrad as gg
    >>> x = gg.tensor(-3.0, requires_grad=True)
    >>> y = gg.cond(x > 0, lambda x: x, lambda x: x * x, (x,))
    >>> y.backward()
    >>> y.item(), x.grad.item()
    (9.0, -6.0)
    >>> gg.vmap(lambda x: gg.cond(x > 0, gg.square, gg.neg, (x,)))(gg.tensor([4.0, -5.0]))
    tensor([16.,  5.])
    """
    if not isinstance(pred, (bool, int, float, Tensor)) and not hasattr(pred, "recorded"):
        raise RuntimeError(f"Expected pred to be bool or tensor, but got {pred}.")
    if isinstance(pred, Tensor) and pred.numel() != 1:
        raise RuntimeError(f"Expected pred to be bool or single-element tensor, but got {pred}.")
    if not callable(true_fn) or not callable(false_fn):
        raise RuntimeError("Expect both branches to be callable.")
    leaves = tree.flatten(operands)[0] if isinstance(operands, (tuple, list)) else [None]
    if isinstance(pred, Tensor) and not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise RuntimeError(
            "Expect operands to be a tuple of possibly nested dict/list/tuple that only consists "
            f"of tensor leaves, but got {operands}."
        )
    if not _differs_between_examples(pred):
        return true_fn(*operands) if pred else false_fn(*operands)
    yes, no = _Carried(true_fn(*operands)), _Carried(false_fn(*operands))
    wrong = yes.difference(no)
    if wrong:
        raise RuntimeError(f"Expected both branches to return the same, but {wrong}.")
    return yes.chosen(pred, no).value


def while_loop(cond_fn: Callable, body_fn: Callable, init_val: Any) -> Any:
    """``value = body_fn(value)``, from ``init_val`` on, as long as ``cond_fn(value)`` is true.

    The value is a tensor or a nested structure of tensors, numbers (which become tensors) and None.
    ``body_fn`` returns the same structure, shapes and dtypes; where it makes another dtype of a
    number of ``init_val``, the number takes that one, and the first step is computed again.
    ``cond_fn`` returns a truth value or a tensor of one element.

    Gradients flow through every step that was made. Inside ``vmap`` the loop goes on until the last
    example is done, and leaves the others as they are.

    A compiled function records as many steps as were made, with the outcomes of ``cond_fn`` as
    their conditions: each number of steps is a program of its own (64 are kept).

    Raises TypeError if the structure, a shape or a dtype changes, or ``cond_fn`` returns something
    else.

    >>> import gpugrad as gg
    >>> gg.while_loop(lambda v: v[0] < 5, lambda v: (v[0] + 1, v[1] * 2), (0, gg.tensor(1.0)))
    (tensor(5), tensor(32.))
    """
    carried, first = _Carried(init_val), True
    while True:
        outcome = _truth(cond_fn(carried.value))
        if not _any_example(outcome):
            return carried.value
        after, carried = _step(lambda v: (body_fn(v), None), carried, first, "while_loop")[:2]
        carried = after.chosen(outcome, carried) if _differs_between_examples(outcome) else after
        first = False


def scan(
    f: Callable, init: Any, xs: Any = None, length: int | None = None, reverse: bool = False
) -> tuple[Any, Any]:
    """Carry a value through the steps of a sequence: ``carry, y = f(carry, x)`` for every ``x``
    along the first dimension of ``xs``. Returns the last ``carry``, and all ``y`` stacked.

    ``init``, ``xs`` and what ``f`` returns are tensors or nested structures of tensors, numbers
    (which become tensors) and None; with ``xs=None`` there are ``length`` steps with ``x=None``.
    With ``reverse=True`` the steps go from the last ``x`` to the first; ``ys[i]`` belongs to
    ``xs[i]`` all the same. The carry keeps its structure, shapes and dtypes; where ``f`` makes
    another dtype of a number of ``init``, the number takes that one, and the first step is computed
    again. If there are no steps, ``f`` is called once on zeros to know what the empty ``ys`` are.

    Gradients flow through every step. A compiled function records all steps one after the other:
    each length is a program of its own.

    Raises ValueError if the lengths of ``xs`` and ``length`` differ or there are none, and
    TypeError if the carry or ``y`` changes its structure, a shape or a dtype.

    >>> import gpugrad as gg
    >>> def add(total, x):
    ...     return total + x, total
    >>> gg.scan(add, 0.0, gg.tensor([1.0, 2.0, 3.0]))
    (tensor(6.), tensor([0., 1., 3.]))
    """
    given = _Carried(xs)
    length = _length(given.leaves, length)
    columns = [None if leaf is None else _rows(leaf) for leaf in given.leaves]
    carried = _Carried(init)
    if length == 0:
        return carried.value, _no_results(f, carried, given)
    results: list[_Carried] = []
    for k in reversed(range(length)) if reverse else range(length):
        x = given.rebuild([None if c is None else c[k] for c in columns])
        carried, _, y = _step(lambda v, x=x: f(v, x), carried, not results, "scan")
        results.append(_Carried(y))
        wrong = results[0].difference(results[-1])
        if wrong:
            raise TypeError(f"scan: f must return the same kind of y in every step, but {wrong}")
    return carried.value, _stacked(results[::-1] if reverse else results)


# ------------------------------------------------------------------------------------------------
# what goes round


class _Carried:
    """A structure of tensors and None; numbers and arrays have become tensors."""

    def __init__(self, value: Any):
        leaves, self.rebuild = tree.flatten(value)
        self.structure = tree.structure(value)
        self.numbers = [isinstance(leaf, _NUMBERS) for leaf in leaves]
        self.leaves = [_tensor(leaf) for leaf in leaves]

    @property
    def value(self) -> Any:
        return self.rebuild(self.leaves)

    def difference(self, other: _Carried) -> str | None:
        """How another differs in structure, shapes or dtypes; None if it does not."""
        if self.structure != other.structure:
            return f"the structure {_shown(self)} became {_shown(other)}"
        for a, b in zip(self.leaves, other.leaves, strict=True):
            if not _alike(a, b):
                return f"{_type(a)} became {_type(b)}"
        return None

    def like(self, other: _Carried) -> _Carried:
        """The same, where what were numbers have the dtypes of another."""
        leaves = [
            a.to(b.dtype) if number and a is not None and b is not None else a
            for a, b, number in zip(self.leaves, other.leaves, self.numbers, strict=True)
        ]
        return _Carried(self.rebuild(leaves))

    def chosen(self, condition: Tensor, other: _Carried) -> _Carried:
        """The leaves of this one where a condition of each example holds, else of another."""
        condition = condition.reshape(())
        leaves = [
            None if a is None else where(condition, a, b)
            for a, b in zip(self.leaves, other.leaves, strict=True)
        ]
        return _Carried(self.rebuild(leaves))


def _step(f: Callable, carried: _Carried, first: bool, name: str) -> tuple[_Carried, _Carried, Any]:
    """The carry after a step, before it (with the dtypes that numbers got), and the other result.

    Raises TypeError if ``f`` returns no pair or another kind of carry."""
    after, other = _pair(f(carried.value), name)
    wrong = carried.difference(after)
    if wrong and first and any(carried.numbers) and carried.structure == after.structure:
        again = carried.like(after)
        if not again.difference(after):
            after, other = _pair(f(again.value), name)
            carried, wrong = again, again.difference(after)
    if wrong:
        raise TypeError(
            f"{name}: the carry must keep its structure, shapes and dtypes, but {wrong}"
        )
    return after, carried, other


def _pair(result, name: str) -> tuple[_Carried, Any]:
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise TypeError(f"{name}: f must return a pair (carry, y), got {type(result).__name__}")
    return _Carried(result[0]), result[1]


def _tensor(leaf) -> Tensor | None:
    if leaf is None or isinstance(leaf, Tensor):
        return leaf
    leaf = getattr(leaf, "recorded", leaf)  # a number that is being recorded
    if isinstance(leaf, (Tensor, *_NUMBERS)) or is_array(leaf):
        return as_tensor(leaf)
    raise TypeError(f"a {type(leaf).__name__} is no tensor, number or None")


def _alike(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.array.shape == b.array.shape and a.array.dtype == b.array.dtype


def _type(leaf: Tensor | None) -> str:
    return "None" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _shown(carried: _Carried) -> str:
    return str(carried.rebuild([_type(leaf) for leaf in carried.leaves])).replace("'", "")


# ------------------------------------------------------------------------------------------------
# truth


def _truth(outcome):
    """What ``cond_fn`` returned, if it has one truth. A tensor that holds a number is compared."""
    if isinstance(outcome, Tensor) and outcome.numel() == 1:
        return outcome if outcome.dtype == "bool" else outcome != 0
    if isinstance(outcome, (bool, int, float)) or hasattr(outcome, "recorded"):
        return outcome
    raise TypeError(
        f"while_loop: cond_fn must return a truth value or a tensor of one element, got "
        f"{_type(outcome) if isinstance(outcome, Tensor) else type(outcome).__name__}"
    )


def _differs_between_examples(outcome) -> bool:
    """Whether a truth is one of each example of a ``vmap``."""
    return isinstance(outcome, Tensor) and outcome.array.__class__ is StandIn


def _any_example(outcome) -> bool:
    """Whether it is true for any example of all the ``vmap`` around."""
    while _differs_between_examples(outcome):
        (value, *_) = outcome.carried()
        outcome = value.any() if isinstance(outcome, Batched) else value
    return bool(outcome)


# ------------------------------------------------------------------------------------------------
# sequences


def _length(leaves: Sequence, length: int | None) -> int:
    """The number of steps. Raises ValueError if it is not one number."""
    tensors = [leaf for leaf in leaves if leaf is not None]
    if any(leaf.ndim == 0 for leaf in tensors):
        raise ValueError("scan: xs has no leading axis to scan over: it has no dimensions")
    sizes = list(dict.fromkeys(leaf.shape[0] for leaf in tensors))
    if len(sizes) > 1:
        raise ValueError(
            f"scan got values with different leading axis sizes: {', '.join(map(str, sizes))}"
        )
    if length is None:
        if not sizes:
            raise ValueError("scan got no values to scan over and `length` not provided.")
        return sizes[0]
    if sizes and sizes[0] != length:
        raise ValueError(
            f"scan got `length` argument of {length} which disagrees with leading axis sizes "
            f"{sizes}."
        )
    if length < 0:
        raise ValueError(f"scan got a negative `length`: {length}")
    return int(length)


def _rows(x: Tensor) -> list[Tensor]:
    """What lies along the first dimension. The gradient of a row is an array like that which it was
    taken from, so rows are taken from blocks: n rows cost as much as ``2 * sqrt(n)`` arrays."""
    size = max(1, isqrt(x.shape[0]))
    blocks = (x[k : k + size] for k in range(0, x.shape[0], size))
    return [row for block in blocks for row in unbind(block, 0)]


def _stacked(results: list[_Carried]) -> Any:
    columns = zip(*[r.leaves for r in results], strict=True)
    return results[0].rebuild([None if c[0] is None else stack(c) for c in columns])


def _no_results(f: Callable, carried: _Carried, given: _Carried) -> Any:
    """The ``ys`` of no steps: empty, of the shapes and dtypes that ``f`` gives for zeros."""
    leaves = [
        None if leaf is None else zeros(*leaf.shape[1:], dtype=leaf.dtype, device=leaf.device)
        for leaf in given.leaves
    ]
    with grad_mode(False):
        y = _Carried(_pair(f(carried.value, given.rebuild(leaves)), "scan")[1])
    return y.rebuild(
        [
            None if leaf is None else empty(0, *leaf.shape, dtype=leaf.dtype, device=leaf.device)
            for leaf in y.leaves
        ]
    )
