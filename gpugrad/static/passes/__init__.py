"""Passes: each takes a graph and gives another that computes the same with less.

Print a graph before and after one to see what it did:

    print(graph)
    print(passes.fuse(graph))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..graph import Graph
from .algebra import use_identities
from .broadcasts import broadcast_lazily
from .fusion import fuse
from .linear import move_scales
from .merging import merge_products
from .product_order import order_products
from .recomputing import recompute
from .simple import drop_dead, fold_constants, share_common, simplify

Pass = Callable[[Graph], Graph]

_SIMPLE: tuple[Pass, ...] = (drop_dead, fold_constants, simplify, share_common, drop_dead)
_FUSION: tuple[Pass, ...] = (broadcast_lazily, fuse, drop_dead)
DEFAULT = (*_SIMPLE, *_FUSION)
# Those of the native runner, which adds up in another order; it has more that come after them.
NATIVE = (*_SIMPLE, merge_products, *_FUSION)
# What compile(algebra="real") adds after the simple ones, and after all: longer expressions.
_REAL: tuple[Pass, ...] = (use_identities, move_scales, order_products, share_common, drop_dead)


def chosen(native: bool, algebra: str) -> Sequence[Pass]:
    """The passes of a runner, for an ``algebra`` of ``compile``."""
    if algebra == "exact":
        return NATIVE if native else DEFAULT
    merging: tuple[Pass, ...] = (merge_products,) if native else ()
    return (*_SIMPLE, *_REAL, *merging, *_FUSION, use_identities, drop_dead)


def optimize(graph: Graph, passes: Sequence[Pass] = DEFAULT) -> Graph:
    """The graph after some passes; the graph itself stays as it was.

    With the default passes every result has the same bits, as far as the same primitive operations
    have the same bits in a longer loop: ``+ - * / sqrt``, comparisons and choices always have.
    """
    for one in passes:
        graph = one(graph)
    return graph


__all__ = [
    "DEFAULT", "NATIVE", "Pass", "broadcast_lazily", "chosen", "drop_dead", "fold_constants",
    "fuse", "merge_products", "move_scales", "optimize", "order_products", "recompute",
    "share_common", "simplify", "use_identities",
]  # fmt: skip
