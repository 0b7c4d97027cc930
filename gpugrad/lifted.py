"""Tensors that carry more than values: what transformations of functions put in place of tensors.

Inside ``func.jvp`` a tensor carries its tangent (``func.Dual``), inside ``func.vmap`` a whole batch
(``batching.Batched``). Every open transformation has a level, the innermost the highest. An
operation is interpreted by its argument of the highest level, in operations on what that one
carries, whose arguments are of lower levels: so transformations nest in any order.

A lifted tensor may have a record on the tape of its own, besides those of what it carries: a
gradient inside of the transformation follows the one, a gradient outside of it the others.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .autograd.engine import ElementwiseNode, Node, OpNode
from .backend.arrays import StandIn
from .config import modes
from .eager import record
from .eager import write as write_plain
from .errors import BatchedValueError
from .ops.core import Op, register_interpreter
from .tensor import Tensor, highest


class Lifted(Tensor):
    """A tensor of an open transformation."""

    __slots__ = ("_level",)

    if TYPE_CHECKING:
        _level: int

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        register_interpreter(cls, 2, interpret)

    def interpret(self, op: Op, args, params) -> Tensor:
        """Run an operation of which this is the argument of the highest level."""
        raise NotImplementedError

    def run_arrays(self, function, args, params) -> Tensor:
        """``eager.run_arrays`` of which this is the argument of the highest level."""
        raise NotImplementedError

    def carried(self) -> tuple[Tensor, ...]:
        """The tensors of lower levels it is made of."""
        raise NotImplementedError

    def unrecorded(self) -> Lifted:
        """The same without its record on the tape."""
        raise NotImplementedError

    def detach(self) -> Tensor:
        """The same memory without history, at this level and all lower ones."""
        raise NotImplementedError

    def overwrite(self, value: Tensor) -> None:
        """Make ``value`` the new content, in place."""
        raise NotImplementedError

    def refuse_to_be_written(self) -> None:
        """Raise the error for an attempt to write this tensor into one of a lower level."""
        raise NotImplementedError

    def like_it(self, filled: Tensor) -> Tensor:
        """A tensor with the values of ``filled`` and as many batch axes as this one, to be written
        to in place: what ``zeros_like(x)`` makes of zeros."""
        return like(self.carried()[0], filled)

    def __bool__(self) -> bool:
        if self.array.__class__ is StandIn:
            raise BatchedValueError(
                "vmap: It looks like you're attempting to use a Tensor in some data-dependent "
                "control flow. We don't support that yet; use where(condition, a, b)."
            )
        return super().__bool__()


def like(x: Tensor, filled: Tensor) -> Tensor:
    """``filled``, or for a lifted ``x`` a tensor of its kind with these values."""
    return x.like_it(filled) if isinstance(x, Lifted) else filled


def are_lifted(*values) -> bool:
    """Whether any of some values is a lifted tensor."""
    return any(isinstance(v, Lifted) for v in values)


def interpret(op: Op, args, params) -> Tensor:
    """Let the argument of the highest level interpret an operation, and record it at that level."""
    top = highest(args)
    result = top.interpret(op, args, params)
    if isinstance(result, Lifted) and result._level == top._level and modes.local.grad:
        record(op, args, params, result)
        _keep_output(result)
    return result


def write(x: Tensor, value: Tensor) -> Tensor:
    """``eager.write`` of tensors that may be lifted: ``value`` becomes the content of ``x``.

    Raises RuntimeError if it carries more than ``x`` can.
    """
    if isinstance(value, Lifted) and value._level > x._level:
        value.refuse_to_be_written()
    if not isinstance(x, Lifted):
        return write_plain(x, value)
    x.overwrite(value)
    return x


@contextmanager
def new_level():
    """Open a transformation: the level of its tensors."""
    local = modes.local
    with modes.open():
        local.levels += 1
        try:
            yield local.levels
        finally:
            local.levels -= 1


def nodes_of(t: Tensor) -> list[Node]:
    """The records of a tensor, at its level and all lower ones."""
    found = [] if t._node is None else [t._node]
    if isinstance(t, Lifted):
        for inner in t.carried():
            found += nodes_of(inner)
    return found


# ------------------------------------------------------------------------------------------------
# A derivative that reads its output (exp, tanh, sqrt ...) must read it with what it carries, or
# second derivatives lack a term and batches all but their shape. A record saves the output as an
# array, so these keep the rest beside it.

_outputs: weakref.WeakKeyDictionary[Node, Lifted] = weakref.WeakKeyDictionary()


class _WithLiftedOutput:
    __slots__ = ()

    def saved_tensors(self):
        saved, out = super().saved_tensors()  # type: ignore[misc]
        if out is not None:
            lifted = _outputs[self].unrecorded()  # type: ignore[index]
            lifted._node, lifted._version = self, out._version
            out = lifted
        return saved, out


class _LiftedElementwiseNode(_WithLiftedOutput, ElementwiseNode):
    __slots__ = ()


class _LiftedOpNode(_WithLiftedOutput, OpNode):
    __slots__ = ()


_LIFTED_NODES = {ElementwiseNode: _LiftedElementwiseNode, OpNode: _LiftedOpNode}


def _keep_output(result: Lifted) -> None:
    node = result._node
    if node is not None and node.out is not None:
        _outputs[node] = result.unrecorded()
        node.__class__ = _LIFTED_NODES[node.__class__]
