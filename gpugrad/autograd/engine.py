"""The tape: records of operations, the backward pass over them, and the modes that switch
recording.

A record (``Node``) belongs to the tensor it made. It refers to the records of its arguments
(``edges``), to the values
its derivative reads (``saved``), and to nothing else: memory that no derivative needs is freed as
soon as the program
drops it. Backward visits records when all their users have been visited, without recursion.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from ..backend.arrays import _ndarray, array_module
from ..backend.memory import LARGE, exclusive
from ..config import grad_mode, modes
from ..errors import SavedTensorError, at
from ..ops.core import Meta, Op
from ..ops.shape import cast, sum_to
from ..tensor import Tensor, bump_version, clock, wrap

_new = object.__new__
_PLAIN = frozenset((type(None), float, int, bool, _ndarray, Meta))
_FREED = object()


class Node:
    """One record. ``vjp`` turns the cotangent of the output into those of the edges."""

    # edges: records of the arguments (None: needs no gradient). saved: tensors, arrays, numbers or
    # Meta.
    # out: the output's array where the derivative reads it; only then out_version is set, to see
    # in-place writes to it. time: the clock of in-place writes when the record was made. shape: of
    # the
    # output.
    __slots__ = ("__weakref__", "edges", "out", "out_version", "saved", "shape", "time")

    @property
    def line(self):
        """Where the operation was called, if anomaly mode was on."""
        return lines.get(self)

    @property
    def name(self) -> str:
        return f"{type(self).__name__}Backward"

    @property
    def next_functions(self) -> tuple:
        """torch's view of the edges: (record, output number) pairs."""
        return tuple((e, 0) for e in self.edges)

    def __repr__(self):
        return f"<{self.name}>"

    def arrays(self, g) -> Sequence:
        """Cotangents of the edges as arrays, from one as an array."""
        raise NotImplementedError

    def tensors(self, g) -> Sequence:
        """The same on tensors, recording if recording is on."""
        raise NotImplementedError

    def release(self) -> None:
        """Forget the saved values."""
        if self.out is not None or any(s.__class__ not in _UNCOUNTED for s in self.saved):
            self.saved = _FREED
            self.out = None

    def stale(self, position: int | None, version: list):
        """The error for a saved value that was written in place since."""
        what = "its output" if position is None else f"argument {position}"
        saved_at = at(self.line) if self.line else " (set_detect_anomaly(True) shows the line)"
        return SavedTensorError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            "operation: "
            f"{self.name} saved {what}{saved_at}, and it was written in place{at(version[1])}. "
            "Write to a clone() instead, or compute the gradient before writing."
        )

    def saved_arrays(self) -> list:
        """The saved values as arrays, after checking that they are what was saved."""
        saved = self.saved
        if saved is _FREED:
            raise RuntimeError(_TWICE)
        if self.out is not None and self.out_version[0] > self.time:
            raise self.stale(None, self.out_version)
        values = []
        for s in saved:
            if s.__class__ not in _PLAIN:
                if s._version[0] > self.time:
                    raise self.stale(len(values), s._version)
                s = s.array
            values.append(s)
        return values

    def saved_tensors(self) -> tuple:
        """The saved values with their history, and the output attached to this record."""
        self.saved_arrays()  # the checks
        out = None
        if self.out is not None:
            out = wrap(self.out)
            out._node, out._version = self, self.out_version
        return self.saved, out


lines: weakref.WeakKeyDictionary[Node, tuple] = weakref.WeakKeyDictionary()
_UNCOUNTED = frozenset((type(None), float, int, bool, Meta))
_TWICE = (
    "Trying to backward through the graph a second time (or directly access saved tensors after "
    "they have already been "
    "freed). Saved intermediate values of the graph are freed when you call .backward() or "
    "autograd.grad(). Specify "
    "retain_graph=True if you need to backward through the graph a second time."
)


class ElementwiseNode(Node):
    """The record of an elementwise operation: edges and saved values of those arguments only that
    matter."""

    __slots__ = ("rule",)

    @property
    def name(self) -> str:
        return f"{self.rule.op.name}Backward"

    def arrays(self, g):
        values = self.saved_arrays()
        rule = self.rule
        if g.__class__ is _ndarray and self.shape and g.nbytes < LARGE:
            function = rule.run_small(g.dtype)
            result = function(g, *values) if self.out is None else function(g, self.out, *values)
            return result if result.__class__ is list else (result,)
        return rule.run_arrays(g, self.out, values)

    def tensors(self, g):
        saved, out = self.saved_tensors()
        return self.rule.run_ops(g, out, saved)


class OpNode(Node):
    """The record of any other operation of the table."""

    __slots__ = ("needs", "op", "params")

    @property
    def name(self) -> str:
        return f"{self.op.name}Backward"

    def arrays(self, g):
        values = self.saved_arrays()
        return self.op.vjp(g, self.out, values, self.params, self.needs)

    def tensors(self, g):
        saved, out = self.saved_tensors()
        return self.op.vjp(g, out, saved, self.params, self.needs)


class Leaf(Node):
    """Where a gradient ends: in ``.grad`` of a tensor the user made."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor):
        self.tensor = weakref.ref(tensor)
        self.edges = self.saved = ()
        self.out = None
        self.shape = tensor.array.shape
        self.time = 0

    @property
    def name(self) -> str:
        return "AccumulateGrad"

    @property
    def variable(self) -> Tensor | None:
        """The tensor this leaf belongs to."""
        return self.tensor()

    def release(self) -> None:
        pass


class Parts(dict):
    """Cotangents of some outputs of a record with several, by output number."""


class Part(Node):
    """One output of a record with several outputs."""

    __slots__ = ("index",)

    def __init__(self, parent: Node, index: int, shape):
        self.edges = (parent,)
        self.index, self.shape = index, shape
        self.saved, self.out, self.time = (), None, 0

    def arrays(self, g):
        return (Parts({self.index: g}),)

    tensors = arrays


# ------------------------------------------------------------------------------------------------
# backward pass

_hooks: weakref.WeakKeyDictionary[Node, dict[int, Callable]] = weakref.WeakKeyDictionary()
_post_hooks: weakref.WeakKeyDictionary[Node, dict[int, Callable]] = weakref.WeakKeyDictionary()
_retained: weakref.WeakKeyDictionary[Node, weakref.ref] = weakref.WeakKeyDictionary()


def _count_users(roots: Sequence[Node]) -> dict[Node, int]:
    """How many cotangents each record below the roots will receive from others."""
    users: dict[Node, int] = dict.fromkeys(roots, 0)
    get = users.get
    stack = list(users)
    pop, push = stack.pop, stack.append
    while stack:
        for edge in pop().edges:
            if edge is not None:
                n = get(edge)
                if n is None:
                    users[edge] = 1
                    push(edge)
                else:
                    users[edge] = n + 1
    return users


def _count_users_towards(roots: Sequence[Node], targets: set[Node]) -> dict[Node, int]:
    """The same, but only of records from which a target can be reached."""
    reaches: dict[Node, bool] = {}
    stack = [(root, False) for root in roots]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            reaches[node] = node in targets or any(
                reaches.get(e, False) for e in node.edges if e is not None
            )
        elif node not in reaches:
            reaches[node] = node in targets
            stack.append((node, True))
            stack.extend((e, False) for e in node.edges if e is not None and e not in reaches)
    users = {root: 0 for root in roots if reaches[root]}
    stack = list(users)
    while stack:
        for edge in stack.pop().edges:
            if edge is not None and reaches[edge]:
                if edge in users:
                    users[edge] += 1
                else:
                    users[edge] = 1
                    stack.append(edge)
    return users


def _fit(node: Node, d, edge: Node):
    """Sum a cotangent over the axes along which the argument was broadcast; any other mismatch is a
    wrong rule."""
    if isinstance(d, Parts):
        return d
    if isinstance(node, ElementwiseNode):
        return sum_to(d, shape=edge.shape)
    raise RuntimeError(
        f"{node.name} returned a gradient of shape {tuple(d.shape)} for an argument of shape "
        f"{tuple(edge.shape)}"
    )


def _add(a, b):
    """The sum of two cotangents; NumPy makes a scalar of two zero-dimensional arrays, which stays
    an array here."""
    total = a + b
    return total if total.__class__ is a.__class__ else array_module(a).asarray(total)


def _merge(old: Parts, new: Parts) -> Parts:
    for index, d in new.items():
        old[index] = _add(old[index], d) if index in old else d
    return old


def _run(roots, seeds, *, keep, with_tensors, users, capture=None):
    """The backward pass. Returns the captured cotangents by record; without ``capture``, leaves
    accumulate.

    Works on plain arrays unless ``with_tensors`` (double backward, or forward-mode tangents
    inside).
    """
    pending: dict[Node, object] = {}  # cotangents of records that wait for more
    for root, seed in zip(roots, seeds, strict=True):
        pending[root] = _add(pending[root], seed) if root in pending else seed
    ready = [(r, pending.pop(r)) for r in dict.fromkeys(roots) if users.get(r) == 0]
    seeds = None
    captured: dict[Node, object] = {}
    hooked = bool(_hooks) or bool(_retained)
    anomaly = modes.unusual and modes.local.anomaly
    take, push = pending.pop, ready.append
    while ready:
        node, g = ready.pop()
        if g is not None:
            if hooked:
                g = _call_hooks(node, g)
            if capture is not None and node in capture:
                captured[node] = g
        edges = node.edges
        if not edges:
            if capture is None and g is not None and node.__class__ is Leaf:
                _accumulate(node, g, owned=not with_tensors and exclusive(g))
            continue
        if g is None:  # nothing but missing cotangents arrived: pass that on
            parts = (None,) * len(edges)
        else:
            parts = node.tensors(g) if with_tensors else node.arrays(g)
            if anomaly:
                _check_anomaly(node, parts)
            if not keep:
                node.release()
            g = None
        for edge, d in zip(edges, parts):
            if edge is None:
                continue
            left = users.get(edge)
            if left is None:
                continue  # leads to nothing that was asked for
            if d is not None and d.__class__ is not Parts:
                if d.shape != edge.shape:
                    d = _fit(node, d, edge)
                elif not edge.shape and not with_tensors:
                    d = array_module(d).asarray(d)  # NumPy turns 0-d results into scalars
            if left > 1 or pending:
                old = take(edge, None)
                if old is not None:
                    if d is None:
                        d = old
                    elif d.__class__ is Parts:
                        d = _merge(old, d)
                    elif not with_tensors and exclusive(old):
                        old += d
                        d = old
                    else:
                        d = _add(old, d)
            if left == 1:
                push((edge, d))
            else:
                users[edge] = left - 1
                if d is not None:
                    pending[edge] = d
        parts = d = old = None  # a reference left here would forbid writing into the next gradient
    return captured


def _accumulate(leaf: Leaf, g, owned: bool) -> None:
    """Add a cotangent to ``.grad``. The first one is taken as it is if nobody else can see its
    memory."""
    tensor = leaf.tensor()
    if tensor is None:
        return
    if isinstance(g, Tensor):
        tensor.grad = g if tensor.grad is None else tensor.grad + g
    else:
        dtype = tensor.array.dtype
        if g.dtype != dtype:
            g = g.astype(dtype)
        if tensor.grad is None:
            tensor.grad = wrap(g if owned else g.copy())
        else:
            grad = tensor.grad
            if grad._node is not None:
                tensor.grad = grad + wrap(g)
            else:
                array_module(g).add(grad.array, g, grad.array)
                bump_version(grad)
    if _post_hooks and leaf in _post_hooks:
        for hook in list(_post_hooks[leaf].values()):
            hook(tensor)


def _call_hooks(node: Node, g):
    hooks = _hooks.get(node)
    if hooks:
        as_tensor = not isinstance(g, Tensor)
        t = wrap(g) if as_tensor else g
        for hook in list(hooks.values()):
            result = hook(t)
            if result is not None:
                if result.shape != t.shape:
                    raise RuntimeError(
                        f"hook {hook} returned shape {tuple(result.shape)} for a gradient of "
                        f"{tuple(t.shape)}"
                    )
                t = result
        g = t.array if as_tensor else t
    ref = _retained.get(node)
    if ref is not None and (tensor := ref()) is not None:
        t = g if isinstance(g, Tensor) else wrap(g.copy())
        tensor.grad = t if tensor.grad is None else tensor.grad + t
    return g


class RemovableHandle:
    """Removes a hook: ``handle.remove()``, or at the end of a ``with`` block."""

    _next = 0

    def __init__(self, hooks: dict):
        self._hooks = weakref.ref(hooks) if not isinstance(hooks, dict) else (lambda: hooks)
        self.id = RemovableHandle._next
        RemovableHandle._next += 1

    def remove(self) -> None:
        hooks = self._hooks()
        if hooks is not None:
            hooks.pop(self.id, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


def register_hook(node: Node, hook: Callable, table=_hooks) -> RemovableHandle:
    """Call ``hook`` with the cotangent of a record's output when it is complete."""
    hooks = table.setdefault(node, {})
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def retain_grad(tensor: Tensor) -> None:
    """Keep the gradient of a computed tensor in its ``.grad``."""
    if tensor._node is None:
        raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
    if not tensor.is_leaf:
        _retained[tensor._node] = weakref.ref(tensor)


def _check_anomaly(node: Node, parts) -> None:
    for position, d in enumerate(parts):
        if d is None or isinstance(d, Parts):
            continue
        array = d.array if isinstance(d, Tensor) else d
        if array_module(array).isnan(array).any():
            raise RuntimeError(
                f"Function '{node.name}' returned nan values in its {position}th output; the "
                f"forward operation ran{at(node.line)}"
            )


def _seed(tensor: Tensor, gradient):
    """The cotangent a backward pass starts from."""
    if gradient is None:
        if tensor.array.size != 1:
            raise RuntimeError(
                f"grad can be implicitly created only for scalar outputs, but this one has shape "
                f"{tuple(tensor.shape)}; "
                "reduce it with .sum() or .mean(), or pass gradient="
            )
        return wrap(array_module(tensor.array).ones_like(tensor.array))
    if not isinstance(gradient, Tensor):
        gradient = wrap(gradient)
    if gradient.shape != tensor.shape:
        raise RuntimeError(
            f"Mismatch in shape: grad_output[0] has a shape of {tuple(gradient.shape)} and "
            f"output[0] has a shape of "
            f"{tuple(tensor.shape)}."
        )
    if gradient.dtype != tensor.dtype:
        gradient = cast(gradient, dtype=tensor.dtype)
    return gradient


def _prepare(tensors, gradients):
    roots, seeds = [], []
    for t, g in zip(tensors, gradients, strict=True):
        if t._node is None:
            raise RuntimeError(
                "element 0 of tensors does not require grad and does not have a grad_fn: nothing "
                "it was computed from has "
                "requires_grad=True, or recording was off (no_grad) when it was computed"
            )
        roots.append(t._node)
        seeds.append(_seed(t, g))
    return roots, seeds


def _as_tuple(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _execute(tensors, gradients, retain_graph, create_graph, capture):
    roots, seeds = _prepare(tensors, gradients)
    keep = create_graph if retain_graph is None else retain_graph
    users = _count_users(roots) if capture is None else _count_users_towards(roots, capture)
    with_tensors = create_graph or (modes.unusual and modes.local.forward > 0)
    if not with_tensors:
        return _run(
            roots,
            [s.array for s in seeds],
            keep=keep,
            with_tensors=False,
            users=users,
            capture=capture,
        )
    with grad_mode(create_graph):
        return _run(roots, seeds, keep=keep, with_tensors=True, users=users, capture=capture)


def backward(
    tensors, grad_tensors=None, retain_graph=None, create_graph=False, inputs=None
) -> None:
    """Accumulate the gradients of ``tensors`` into the ``.grad`` of the leaves (or of ``inputs``
    only).

    >>> import gpugrad as gg
    >>> x = gg.tensor([3.0], requires_grad=True)
    >>> gg.autograd.backward((x * x).sum())
    >>> x.grad
    tensor([6.])
    """
    tensors = _as_tuple(tensors)
    gradients = [None] * len(tensors) if grad_tensors is None else _as_tuple(grad_tensors)
    if inputs is None:
        _execute(tensors, gradients, retain_graph, create_graph, None)
        return
    inputs = _as_tuple(inputs)
    if not inputs:
        raise RuntimeError("`inputs` argument to `backward` cannot be empty.")
    results = grad(tensors, inputs, gradients, retain_graph, create_graph, allow_unused=True)
    for t, g in zip(inputs, results, strict=True):
        if g is not None:
            t.grad = g if t.grad is None else t.grad + g


def grad(
    outputs,
    inputs,
    grad_outputs=None,
    retain_graph=None,
    create_graph=False,
    allow_unused=None,
    materialize_grads=False,
) -> tuple:
    """Gradients of ``outputs`` with respect to ``inputs``, without touching any ``.grad``.

    >>> import gpugrad as gg
    >>> x = gg.tensor(2.0, requires_grad=True)
    >>> gg.autograd.grad(x**3, x)
    (tensor(12.),)
    """
    outputs, inputs = _as_tuple(outputs), _as_tuple(inputs)
    gradients = [None] * len(outputs) if grad_outputs is None else _as_tuple(grad_outputs)
    for t in inputs:
        if t._node is None:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
    found = _execute(outputs, gradients, retain_graph, create_graph, {t._node for t in inputs})
    results = []
    for position, t in enumerate(inputs):
        g = found.get(t._node)
        if g is None:
            if materialize_grads:
                g = array_module(t.array).zeros_like(t.array)
            elif not allow_unused:
                raise RuntimeError(
                    f"One of the differentiated Tensors (number {position}, shape "
                    f"{tuple(t.shape)}) appears to not have been "
                    "used in the graph. Set allow_unused=True if this is the desired behavior."
                )
        results.append(wrap(g) if g is not None and not isinstance(g, Tensor) else g)
    return tuple(results)


def make_elementwise_node(rule, edges, args, out, version, shape) -> ElementwiseNode:
    """A record of an elementwise operation; the short paths write this out."""
    n = _new(ElementwiseNode)
    n.rule = rule
    n.edges = tuple(e for e, need in zip(edges, rule.needs, strict=True) if need)
    n.saved = tuple(args[i] for i in rule.read)
    n.out, n.out_version = out, version
    n.shape, n.time = shape, clock.now
    return n


def make_op_node(op: Op, edges, saved, out, version, shape, params, needs) -> OpNode:
    """A record of another operation."""
    n = _new(OpNode)
    n.op, n.edges, n.saved, n.out, n.out_version = op, edges, saved, out, version
    n.shape, n.time, n.params, n.needs = shape, clock.now, params, needs
    return n
