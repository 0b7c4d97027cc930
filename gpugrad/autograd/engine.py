"""The tape: records of operations, the backward pass over them, and the modes that switch
recording.

A record (``Node``) belongs to the tensor it made. It refers to the records of its arguments
(``edges``), to the values its derivative reads (``saved``), and to nothing else: memory that no
derivative needs is freed as soon as the program drops it. Backward visits records when all their
users have been visited, without recursion.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache

from ..autocasting import autocasting
from ..backend.arrays import _ndarray, array_module, backend_of, every_value, is_array, there
from ..backend.cupy import when_loaded
from ..backend.memory import LARGE, exclusive
from ..backend.numpy import xp as np
from ..compiler import module_writes
from ..config import grad_mode, modes
from ..errors import SavedTensorError, at, user_line
from ..ops import wide
from ..ops.core import REGISTRY, Meta, Op
from ..ops.shape import cast, sum_to
from ..tensor import Tensor, bump_version, clock, constant, wrap


class Node:
    """One record. ``run`` turns the cotangent of the output into those of the edges."""

    # edges: records of the arguments (None: needs no gradient).
    # saved: tensors, arrays, numbers or Meta; () where nothing was saved.
    # out: the output's array where the derivative reads it; only then out_version is set, to see
    #   in-place writes to it.
    # time: the clock of in-place writes when the record was made; -1 once the values are released.
    # shape: of the output.
    # run: function (record, cotangent, keep) -> cotangents of the edges, all of them arrays; it
    #   releases the record unless keep.
    __slots__ = ("__weakref__", "edges", "out", "out_version", "run", "saved", "shape", "time")

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

    def tensors(self, g) -> Sequence:
        """What ``run`` does, on tensors: recording if recording is on."""
        raise NotImplementedError

    def release(self) -> None:
        """Forget the saved values, if there are any; a second backward is an error from now on."""
        if self.saved or self.out is not None:
            self.saved, self.out, self.time = (), None, -1

    def check(self) -> None:
        """Raise if saved values are gone or were written in place. Needed only if the clock moved
        on."""
        time = self.time
        if time < 0:
            raise RuntimeError(_TWICE)
        if self.out is not None and self.out_version[0] > time:
            raise self.stale(None, self.out_version)
        for position, s in enumerate(self.saved):
            if s.__class__ not in _PLAIN and s._version is not None and s._version[0] > time:
                raise self.stale(position, s._version)

    def stale(self, position: int | None, version: list):
        """The error for a saved value that was written in place since."""
        what = "its output" if position is None else f"argument {position}"
        saved_at = at(self.line) if self.line else " (set_detect_anomaly(True) shows the line)"
        return SavedTensorError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: {self.name} saved {what}{saved_at}, and it was written in place"
            f"{at(version[1])}. Write to a clone() instead, or compute the gradient before writing."
        )

    def saved_arrays(self) -> list:
        """The saved values as arrays, after checking that they are what was saved."""
        if self.time != clock.now:
            self.check()
        return [s if s.__class__ in _PLAIN else s.array for s in self.saved]

    def saved_tensors(self) -> tuple:
        """The saved values with their history, and the output attached to this record."""
        if self.time != clock.now:
            self.check()
        out = None
        if self.out is not None:
            out = wrap(self.out)
            out._node, out._version = self, self.out_version
        return self.saved, out


_asarray = np.asarray
# Classes of saved values that are no tensors; CuPy's arrays join them when CuPy is loaded.
_PLAIN = {type(None), float, int, bool, complex, _ndarray, Meta}
when_loaded(_PLAIN.add)
lines: weakref.WeakKeyDictionary[Node, tuple] = weakref.WeakKeyDictionary()
_TWICE = (
    "Trying to backward through the graph a second time (or directly access saved tensors after "
    "they have already been freed). Saved intermediate values of the graph are freed when you call "
    ".backward() or autograd.grad(). Specify retain_graph=True if you need to backward through the "
    "graph a second time."
)


class ElementwiseNode(Node):
    """The record of an elementwise operation: edges and saved values of those arguments only that
    matter."""

    __slots__ = ("rule",)

    @property
    def name(self) -> str:
        return f"{self.rule.op.name}Backward"

    def tensors(self, g):
        saved, out = self.saved_tensors()
        return [
            d if d.shape == edge.shape else sum_to(d, shape=edge.shape)
            for d, edge in zip(self.rule.run_ops(g, out, saved), self.edges, strict=True)
        ]


def run_elementwise(node: ElementwiseNode, g, keep: bool) -> list:
    """Cotangents of any dtype, device and size; each summed to the shape of its argument."""
    parts = node.rule.run_arrays(g, node.out, node.saved_arrays())
    if not keep:
        node.release()
    return [
        d if d.shape == edge.shape else sum_to(d, shape=edge.shape)
        for d, edge in zip(parts, node.edges, strict=True)
    ]


def make_elementwise_node(rule, edges, args, out, version, shape) -> ElementwiseNode:
    """A record of an elementwise operation; the short paths in eager.py write this out."""
    n = ElementwiseNode()
    n.rule, n.run = rule, run_elementwise
    n.edges = tuple(e for e, need in zip(edges, rule.needs, strict=True) if need)
    n.saved = tuple(args[i] for i in rule.read)
    n.out, n.out_version = out, version
    n.shape, n.time = shape, clock.now
    return n


class OpNode(Node):
    """The record of any other operation of the table."""

    __slots__ = ("op", "params", "plan")

    @property
    def name(self) -> str:
        return f"{self.op.name}Backward"

    def tensors(self, g):
        saved, out = self.saved_tensors()
        return self.op.vjp(g, out, saved, self.params, self.plan.needs)

    def release(self) -> None:
        """Shapes and dtypes alone may be used again, as in torch."""
        if self.plan.holds_values:
            super().release()


def run_op(node: OpNode, g, keep: bool) -> Sequence:
    """Cotangents by the rule of the operation's kind, which must have the arguments' shapes."""
    parts = node.op.vjp(g, node.out, node.saved_arrays(), node.params, node.plan.needs)
    if not keep:
        node.release()
    for k, edge in enumerate(node.edges):
        if edge is None or (d := parts[k]) is None:
            continue
        if d.shape != edge.shape:
            raise RuntimeError(
                f"{node.name} returned a gradient of shape {tuple(d.shape)} for an argument of "
                f"shape {tuple(edge.shape)}"
            )
        if not edge.shape:  # NumPy's functions return scalars for zero-dimensional arrays
            parts = list(parts)
            parts[k] = array_module(d).asarray(d)
    return parts


def run_bfloat16_op(node: OpNode, g, keep: bool) -> Sequence:
    """``run_op`` where the result is bfloat16. On the CPU the rule is computed in float32; kernels
    of a GPU do that by themselves. The cotangents are rounded to the dtypes of the arguments."""
    saved, out = node.saved, node.out
    dtypes = [getattr(s, "dtype", None) for s in saved]
    if g.__class__ is _ndarray:
        g, out, *saved = wide.widen([g, out, *node.saved_arrays()])
    elif node.time != clock.now:
        node.check()
    float32 = make_op_node(
        node.op, node.edges, saved, out, None, node.shape, node.params, node.plan
    )
    parts = [
        d if d is None or d.dtype == dtype else d.astype(dtype)
        for d, dtype in zip(run_op(float32, g, True), dtypes)
    ]
    if not keep:
        node.release()
    return parts


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


def spent_node(shape) -> Node:
    """A record whose values were released before: it only says that there was a history."""
    n = Node()
    n.edges, n.saved, n.out, n.shape, n.time, n.run = (None,), (), None, shape, -1, _run_spent
    return n


def _run_spent(node: Node, g, keep: bool):
    node.check()


class Fresh(list):
    """Cotangents of the edges of a record, in memory that nobody else refers to."""


class Parts(dict):
    """Cotangents of some outputs of a record with several, by output number."""


class Part(Node):
    """One output of a record with several outputs."""

    __slots__ = ("index",)

    def __init__(self, parent: Node, index: int, shape):
        self.edges = (parent,)
        self.index, self.shape, self.run = index, shape, Part.tensors
        self.saved, self.out, self.time = (), None, 0

    def tensors(self, g, keep: bool = True):
        return (Parts({self.index: g}),)

    def release(self) -> None:
        """Nothing is saved."""


# ------------------------------------------------------------------------------------------------
# backward pass

_hooks: weakref.WeakKeyDictionary[Node, dict[int, Callable]] = weakref.WeakKeyDictionary()
_post_hooks: weakref.WeakKeyDictionary[Node, dict[int, Callable]] = weakref.WeakKeyDictionary()
_retained: weakref.WeakKeyDictionary[Node, weakref.ref] = weakref.WeakKeyDictionary()


def _count_users(roots: Sequence[Node]) -> dict[Node, int]:
    """How many cotangents each record below the roots will receive from others."""
    users: dict[Node, int] = dict.fromkeys(roots, 0)
    seen, stack = users.get, list(users)
    node = None
    while node is not None or stack:
        edges = (stack.pop() if node is None else node).edges
        node = None
        for edge in edges:
            if edge is None:
                continue
            n = seen(edge)
            if n is not None:
                users[edge] = n + 1
                continue
            users[edge] = 1
            if not edge.edges:  # a leaf
                continue
            if node is None:
                node = edge
            else:
                stack.append(edge)
    return users


def _count_users_towards(roots: Sequence[Node], targets: set[Node]) -> dict[Node, int]:
    """The same, but only of records from which a target can be reached."""
    users_of: dict[Node, list[Node]] = {root: [] for root in roots}
    stack = list(users_of)
    while stack:
        node = stack.pop()
        for edge in node.edges:
            if edge is None:
                continue
            users = users_of.get(edge)
            if users is None:
                users_of[edge] = [node]
                stack.append(edge)
            else:
                users.append(node)
    leads: set[Node] = set()
    stack = [target for target in targets if target in users_of]
    while stack:
        node = stack.pop()
        if node not in leads:
            leads.add(node)
            stack.extend(users_of[node])
    return {node: sum([user in leads for user in users_of[node]]) for node in leads}


def count_users_until(roots: Sequence[Node], ends) -> tuple[dict[Node, int], list[Node]]:
    """The same, but without what lies behind the records ``ends``; and those of them and of the
    leaves that were reached, in order."""
    users: dict[Node, int] = dict.fromkeys(roots, 0)
    reached, stack = [], list(users)
    while stack:
        node = stack.pop()
        if node in ends or node.__class__ is Leaf:
            reached.append(node)
            continue
        for edge in node.edges:
            if edge is None:
                continue
            if edge not in users:
                users[edge] = 0
                stack.append(edge)
            users[edge] += 1
    return users, reached


def run_recorded_backward(roots, seeds, users, ends) -> dict[Node, object]:
    """The cotangents of the records ``ends`` for a recorder, which keeps what is saved."""
    capture = dict.fromkeys(ends)
    return _run(
        roots, seeds, keep=True, with_tensors=False, users=users, capture=capture, ends=True
    )


def ones_for(tensor: Tensor):
    """An array of ones like a tensor's."""
    with there(tensor.array):
        return array_module(tensor.array).ones(tensor.shape, tensor.dtype)


def _sum(a, b):
    """The sum of two cotangents, either of which may be missing."""
    if a is None or b is None:
        return b if a is None else a
    if a.__class__ is Parts:
        return _merge(a, b)
    if a.__class__ is _ndarray and a.nbytes >= LARGE and a.dtype == b.dtype:
        return array_module(a).add(a, b, backend_of(a).empty(a.shape, a.dtype))
    if a.__class__ is _ndarray or isinstance(a, Tensor):
        total = a + b
    else:
        with there(a):
            total = a + b
    if total.__class__ is a.__class__ or isinstance(total, Tensor):
        return total
    return array_module(a).asarray(total)  # NumPy makes a scalar of two zero-dimensional arrays


def _collect(entry: list, d, may_write: bool) -> None:
    """Add a cotangent to ``entry[1]``, into its memory if that is large and nobody else sees it."""
    old = entry[1]
    if old.__class__ is _ndarray and d.__class__ is _ndarray:
        entry[1] = None
        if may_write and exclusive(old):
            old += d
            entry[1] = old
            return
    entry[1] = _sum(old, d)


def _merge(old: Parts, new: Parts) -> Parts:
    for index, d in new.items():
        old[index] = _sum(old.get(index), d)
    return old


def _run(roots, seeds, *, keep, with_tensors, users, capture=None, ends=False):
    """The backward pass. Returns the captured cotangents by record; without ``capture``, leaves
    accumulate. With ``ends`` nothing is run behind them.

    ``users`` counts the cotangents each record will receive from others; a record runs when all
    have come. While it waits, its entry is ``[still to come, their sum so far]``. Works on plain
    arrays unless ``with_tensors`` (double backward, or forward-mode tangents inside).
    """
    ready = _start(roots, seeds, users)
    seeds = None
    captured: dict[Node, object] = {}
    hooked = bool(_hooks.data or _retained.data)  # their len() would look at every reference
    observed = hooked or capture is not None
    anomaly = modes.unusual and modes.local.anomaly
    recorder = modes.local.recording if modes.special else None
    plain = not (observed or with_tensors or recorder)
    line = None if recorder is None else user_line()
    push, waiting = ready.append, users.get
    node = None
    while node is not None or ready:
        if node is None:
            node, g = ready.pop()
        if observed:
            if hooked and g is not None:
                g = _call_hooks(node, g)
            if capture is not None and node in capture:
                if g is not None:
                    captured[node] = g
                if ends:
                    node = None
                    continue
        edges = node.edges
        if not edges:
            if capture is None and g is not None and node.__class__ is Leaf:
                owned = not with_tensors and exclusive(g)  # asked before the call refers to g, too
                _accumulate(node, g, owned, recorder)
            node = None
            continue
        if g is None:  # nothing but missing cotangents arrived: pass that on
            parts = (None,) * len(edges)
        elif with_tensors:
            if isinstance(g, Tensor):
                with there(g.array):
                    parts = node.tensors(g)
            else:
                parts = node.tensors(g)
            if not keep:
                node.release()
        elif recorder is not None:
            parts = _run_recorded(recorder, node, g, keep, line)
        else:
            parts = node.run(node, g, keep)
        if anomaly and g is not None:
            _check_anomaly(node, parts)
        fresh = plain and parts.__class__ is Fresh
        node = g = None
        for edge, d in zip(edges, parts):
            left = waiting(edge)
            if left.__class__ is int:
                if left > 1:
                    users[edge] = [left - 1, d]
                elif fresh and edge.__class__ is Leaf:  # at its end
                    _accumulate(edge, d, True)
                elif node is None:  # the next one, without a detour over the list
                    node, g = edge, d
                else:
                    push((edge, d))
            elif left is not None:  # None: no gradient needed, or leads to nothing asked for
                n, old = left
                if recorder is not None:
                    left[1] = _sum_recorded(recorder, old, d, line)
                elif old.__class__ is _ndarray is d.__class__ and old.nbytes < LARGE:
                    d = old + d  # to ask whether old may be overwritten would cost more
                    left[1] = d if d.__class__ is _ndarray else _asarray(d)
                else:
                    old = None
                    _collect(left, d, not with_tensors)
                if n > 1:
                    left[0] = n - 1
                else:
                    push((edge, left.pop()))
        # a reference left here would forbid writing into the next gradient
        parts = d = left = old = None
    return captured


def _start(roots, seeds, users) -> list[tuple]:
    """The roots that wait for no other, with their seeds; the others take theirs as a first
    part."""
    if len(roots) == 1:
        return [(roots[0], seeds[0])] if roots[0] in users else []
    first: dict[Node, object] = {}
    for root, seed in zip(roots, seeds, strict=True):
        first[root] = _sum(first.get(root), seed)
    ready = []
    for root, seed in first.items():
        if root in users:
            if users[root]:
                users[root] = [users[root], seed]
            else:
                ready.append((root, seed))
    return ready


def _run_recorded(recorder, node: Node, g, keep: bool, line) -> Sequence:
    """``node.run``, noted by a recorder; ``line`` is where the program asked for the backward
    pass."""
    recorder.line = line
    try:
        if g.__class__ is _ndarray:  # nothing is to be done about devices
            parts = _parts_recorded(recorder, node, g)
        else:
            with there(g):
                parts = _parts_recorded(recorder, node, g)
    finally:
        recorder.line = None
    if parts is None:
        return node.run(node, g, keep)
    if not keep:
        node.release()
    return parts


def _parts_recorded(recorder, node: Node, g) -> Sequence | None:
    """The cotangents of an operation of the table; None for other nodes."""
    if isinstance(node, ElementwiseNode):
        parts = recorder.rule(node.rule, g, node.out, _saved(node))
        for k, edge in enumerate(node.edges):
            if edge.shape != node.shape:
                parts[k] = sum_to(parts[k], shape=edge.shape)
        return parts
    run = getattr(node.run, "here", node.run)
    if not isinstance(node, OpNode) or run not in (run_op, run_bfloat16_op):
        return None
    saved, out, needs = _saved(node), node.out, node.plan.needs
    if run is run_op:
        return recorder.cotangents(node.op, g, out, saved, node.params, needs)
    cast = REGISTRY["cast"]
    dtypes = [getattr(s, "dtype", None) for s in saved]
    if g.__class__ is _ndarray:  # see run_bfloat16_op
        g, out, *saved = [
            recorder.operation(cast, (v,), {"dtype": np.dtype("float32")})
            if wide.has_bfloat16([v]) and v.__class__ is not Meta
            else v
            for v in (g, out, *saved)
        ]
    parts = recorder.cotangents(node.op, g, out, saved, node.params, needs)
    return [
        d if d is None or d.dtype == dtype else recorder.operation(cast, (d,), {"dtype": dtype})
        for d, dtype in zip(parts, dtypes, strict=True)
    ]


def _saved(node: Node) -> Sequence:
    """The saved values as they are (tensors, so that a recorder knows whose arrays they are)."""
    if node.time != clock.now:
        node.check()
    return node.saved


def _sum_recorded(recorder, a, b, line):
    total = _sum(a, b)
    if not (a is None or b is None or a.__class__ is Parts or isinstance(a, Tensor)):
        recorder.line = line
        recorder.elementwise(REGISTRY["add"], (a, b), total)
        recorder.line = None
    return total


def _accumulate(leaf: Leaf, g, owned: bool, recorder=None) -> None:
    """Add a cotangent to ``.grad``. The first one is taken as it is if nobody else can see its
    memory."""
    tensor = leaf.tensor()
    if tensor is None:
        return
    with _accumulating:
        if owned and tensor.grad is None and recorder is None and g.dtype is tensor.array.dtype:
            tensor.grad = wrap(g)
        elif recorder is not None and not isinstance(g, Tensor):
            recorder.accumulate(tensor, g)
        elif g.__class__ is _ndarray or isinstance(g, Tensor):
            _add_to_grad(tensor, g, owned)
        else:
            with there(g):
                _add_to_grad(tensor, g, owned)
    if _post_hooks.data and leaf in _post_hooks:
        for hook in list(_post_hooks[leaf].values()):
            hook(tensor)


# Threads may run backward over shared parameters, and NumPy adds without the GIL.
_accumulating = threading.Lock()


def _add_to_grad(tensor: Tensor, g, owned: bool) -> None:
    if isinstance(g, Tensor):
        tensor.grad = g if tensor.grad is None else tensor.grad + g
    else:
        dtype = tensor.array.dtype
        if g.dtype is not dtype and g.dtype != dtype:
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
        t = g if isinstance(g, Tensor) else wrap(REGISTRY["clone"](g))
        tensor.grad = t if tensor.grad is None else tensor.grad + t
    return g


class RemovableHandle:
    """Removes a hook: ``handle.remove()``, or at the end of a ``with`` block."""

    _next = 0

    def __init__(self, hooks: dict, of_leaf: bool):
        self._hooks, self._of_leaf = hooks, of_leaf
        self.id = RemovableHandle._next
        RemovableHandle._next += 1

    def remove(self) -> None:
        self._hooks.pop(self.id, None)
        module_writes.count += self._of_leaf

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.remove()


def register_hook(node: Node, hook: Callable, table=_hooks) -> RemovableHandle:
    """Call ``hook`` with the cotangent of a record's output when it is complete."""
    hooks = table.setdefault(node, {})
    handle = RemovableHandle(hooks, isinstance(node, Leaf))
    hooks[handle.id] = hook
    module_writes.count += isinstance(node, Leaf)  # compiled programs look again
    return handle


def hooks_of(node: Node) -> tuple[Callable, ...]:
    """The hooks of a record or leaf, of both kinds."""
    if not _hooks.data and not _post_hooks.data:
        return ()
    return (*_hooks.get(node, {}).values(), *_post_hooks.get(node, {}).values())


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
        array = every_value(d.array if isinstance(d, Tensor) else d)
        if array_module(array).isnan(array).any():
            raise RuntimeError(
                f"Function '{node.name}' returned nan values in its {position}th output; the "
                f"forward operation ran{at(node.line)}"
            )


@cache
def _one(dtype):
    """The cotangent of most losses: never written to, because this cache refers to it, too."""
    return np.ones((), dtype)


def _seed(tensor: Tensor, gradient):
    """The cotangent a backward pass starts from."""
    if gradient is None:
        if tensor.array.size != 1:
            raise RuntimeError(
                f"grad can be implicitly created only for scalar outputs, but this one has shape "
                f"{tuple(tensor.shape)}; "
                "reduce it with .sum() or .mean(), or pass gradient="
            )
        array = tensor.array
        if array.__class__ is _ndarray and not array.shape:
            return constant(_one(array.dtype))
        with there(array):
            if not array.shape and is_array(array) and array.__class__ is not _ndarray:
                return constant(backend_of(array).one(array.dtype))
            return constant(array_module(array).ones(array.shape, array.dtype))
    if not isinstance(gradient, Tensor):
        gradient = wrap(gradient)
    g, array = gradient.array, tensor.array
    if g.__class__ is array.__class__ and g.shape == array.shape and g.dtype is array.dtype:
        return gradient
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
    with_tensors = create_graph or (modes.unusual and modes.local.levels > 0)
    if not with_tensors:
        return _run(
            roots,
            [s.array for s in seeds],
            keep=keep,
            with_tensors=False,
            users=users,
            capture=capture,
        )
    with grad_mode(create_graph), autocasting(None):  # the rules follow the dtypes of forward
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
                g = constant(array_module(t.array).zeros_like(t.array))
            elif not allow_unused:
                raise RuntimeError(
                    f"One of the differentiated Tensors (number {position}, shape "
                    f"{tuple(t.shape)}) appears to not have been "
                    "used in the graph. Set allow_unused=True if this is the desired behavior."
                )
        results.append(wrap(g) if g is not None and not isinstance(g, Tensor) else g)
        if g is not None and modes.special and modes.local.recording is not None:
            modes.local.recording.made(results[-1])
    return tuple(results)


def make_op_node(op: Op, edges, saved, out, version, shape, params, plan) -> OpNode:
    """A record of another operation."""
    n = OpNode()
    n.op, n.run, n.edges, n.saved, n.out, n.out_version = op, run_op, edges, saved, out, version
    n.shape, n.time, n.params, n.plan = shape, clock.now, params, plan
    return n
