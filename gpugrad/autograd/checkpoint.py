"""Checkpointing: forget the intermediate values of a function, compute them again in backward."""

from __future__ import annotations

from collections.abc import Callable

from .. import random, tree
from ..autocasting import autocasting
from ..config import grad_mode, modes
from ..tensor import Tensor, clock
from .engine import Leaf, Node, Part, grad
from .function import Function


def checkpoint(
    function: Callable,
    *args,
    use_reentrant: bool | None = None,
    preserve_rng_state: bool = True,
    determinism_check: str = "default",
    **kwargs,
):
    """``function(*args, **kwargs)``, of which only the arguments are kept for backward.

    Backward runs the function again, with the random numbers of the first run unless
    ``preserve_rng_state`` is off. Arguments and results may be nested tuples, lists and dicts of
    tensors and anything else. Leaf tensors that the function reaches by itself, such as the
    parameters of a module, get their gradients, too; double backward and nesting work.
    ``use_reentrant`` is accepted for torch's sake: there is one implementation, which can do what
    torch's can with ``use_reentrant=False``.

    Raises RuntimeError if the function uses a computed tensor that is no argument, or if the second
    run gives other shapes or dtypes (unless ``determinism_check="none"``); ValueError for another
    ``determinism_check``. Source: Chen et al., Training deep nets with sublinear memory cost, 2016.

    >>> import gpugrad as gg
    >>> from gpugrad.utils.checkpoint import checkpoint
    >>> x = gg.tensor([0.5], requires_grad=True)
    >>> checkpoint(lambda x: gg.exp(x).sin().exp(), x).sum().backward()
    >>> y = gg.tensor([0.5], requires_grad=True)
    >>> y.exp().sin().exp().sum().backward()
    >>> gg.equal(x.grad, y.grad)
    True
    """
    if determinism_check not in ("default", "none"):
        raise ValueError(
            f"determinism_check should be 'default' or 'none', got {determinism_check!r}"
        )
    if modes.unusual and (not modes.local.grad or modes.local.levels):
        return function(*args, **kwargs)  # nothing is kept anyway
    leaves, unflatten = tree.flatten((args, kwargs))
    places = [i for i, a in enumerate(leaves) if isinstance(a, Tensor) and a._node is not None]
    state = random.get_rng_state() if preserve_rng_state else None
    autocast = modes.local.autocast

    def run(tensors):
        values = list(leaves)
        for i, t in zip(places, tensors, strict=True):
            values[i] = t
        again_args, again_kwargs = unflatten(values)
        return tree.flatten(function(*again_args, **again_kwargs))

    with clock.lock:
        clock.now += 1  # so that the time of a record tells whether it was made before or by us
        start = clock.now
    own = [leaves[i].detach().requires_grad_() for i in places]
    with autocasting(autocast):  # casts of parameters made outside do not count
        outputs, rebuild = run(own)
    recorded = [i for i, o in enumerate(outputs) if isinstance(o, Tensor) and o._node is not None]
    if not recorded:
        return rebuild(outputs)
    parameters = _parameters([outputs[i]._node for i in recorded], {t._node for t in own}, start)
    results = [outputs[i].detach() for i in recorded]
    del own

    def again(tensors):
        """The recorded outputs and the arguments they were computed from, once more."""
        own = [t[...] if modes.local.grad else t.detach().requires_grad_() for t in tensors]
        with grad_mode(True), autocasting(autocast):
            found, _ = _with_rng_state(state, run, own)
        found = [found[i] for i in recorded]
        if determinism_check == "default":
            _check(found, shapes)
        return found, own

    shapes = [(tuple(r.shape), r.dtype) for r in results]
    tensors = [leaves[i] for i in places]
    results = _Checkpoint.apply(again, len(tensors), tuple(results), *tensors, *parameters)
    for i, r in zip(recorded, results, strict=True):
        outputs[i] = r
    return rebuild(outputs)


class _Checkpoint(Function):
    @staticmethod
    def forward(ctx, again, count, results, *tensors):
        ctx.again, ctx.count = again, count
        ctx.save_for_backward(*tensors)
        return results

    @staticmethod
    def backward(ctx, *cotangents):
        tensors = ctx.saved_tensors
        create_graph = modes.local.grad
        outputs, own = ctx.again(tensors[: ctx.count])
        found = grad(
            outputs,
            (*own, *tensors[ctx.count :]),
            cotangents,
            create_graph=create_graph,
            allow_unused=True,
        )
        return (None, None, None, *found)


def _parameters(roots: list[Node], own: set[Node], start: int) -> list[Tensor]:
    """The leaves outside of the function that the records made by it lead to."""
    found: dict[Leaf, Tensor] = {}
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen or node in own:
            continue
        seen.add(node)
        if isinstance(node, Leaf):
            if node.variable is not None:
                found[node] = node.variable
            continue
        if not isinstance(node, Part) and node.time < start:
            raise RuntimeError(
                f"checkpoint: the function uses a tensor of shape {tuple(node.shape)} that was "
                f"computed outside ({node.name}) and is not among its arguments; pass it as an "
                f"argument, so that its gradient can flow on"
            )
        stack.extend(edge for edge in node.edges if edge is not None)
    return list(found.values())


def _with_rng_state(state, function: Callable, *args):
    if state is None:
        return function(*args)
    now = random.get_rng_state()
    random.set_rng_state(state)
    try:
        return function(*args)
    finally:
        random.set_rng_state(now)


def _check(outputs, shapes) -> None:
    again = [
        (tuple(o.shape), o.dtype) if isinstance(o, Tensor) and o._node is not None else None
        for o in outputs
    ]
    if again != shapes:
        raise RuntimeError(
            f"checkpoint: computed again in backward, the function gave other results: {again} "
            f"instead of {shapes} (shape and dtype). It must do the same thing twice; random "
            f"numbers need preserve_rng_state=True"
        )


def checkpoint_sequential(functions, segments: int, input, use_reentrant=None, **options):
    """``checkpoint`` for a chain of functions or modules, cut into so many segments.

    The last segment is run as usual: backward needs it first.

    >>> import gpugrad as gg
    >>> from gpugrad.utils.checkpoint import checkpoint_sequential
    >>> x = gg.tensor([0.5], requires_grad=True)
    >>> checkpoint_sequential([gg.exp, gg.sin, gg.exp], 2, x).sum().backward()
    >>> x.grad.shape
    (1,)
    """
    functions = list(functions)
    if not 1 <= segments <= max(len(functions), 1):
        raise ValueError(
            f"checkpoint_sequential: {segments} segments of a chain of {len(functions)} functions"
        )
    size = len(functions) // segments
    start = 0
    for _ in range(segments - 1):
        input = checkpoint(_chain(functions[start : start + size]), input, **options)
        start += size
    return _chain(functions[start:])(input)


def _chain(functions) -> Callable:
    def run(x):
        for f in functions:
            x = f(x)
        return x

    return run
