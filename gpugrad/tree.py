"""Nested tuples, lists and dicts of tensors, flattened and rebuilt."""

from __future__ import annotations

from collections.abc import Callable


def flatten(tree) -> tuple[list, Callable]:
    """The leaves of a nested structure in order, and a function that rebuilds it from as many new
    leaves."""
    rebuild: Callable
    if isinstance(tree, dict):
        keys = list(tree)
        children = [flatten(tree[k]) for k in keys]
        rebuild = lambda parts: tree.__class__(zip(keys, parts, strict=True))  # noqa: E731
    elif isinstance(tree, (tuple, list)):
        children = [flatten(t) for t in tree]
        named = hasattr(tree, "_fields")  # a namedtuple takes its fields one by one
        rebuild = (lambda parts: tree.__class__(*parts)) if named else tree.__class__
    else:
        return [tree], lambda leaves: leaves[0]
    sizes = [len(leaves) for leaves, _ in children]

    def unflatten(leaves):
        parts, start = [], 0
        for size, (_, build) in zip(sizes, children, strict=True):
            parts.append(build(leaves[start : start + size]))
            start += size
        return rebuild(parts)

    return [leaf for leaves, _ in children for leaf in leaves], unflatten


def structure(tree):
    """A hashable description of a nested structure without its leaves."""
    if isinstance(tree, dict):
        return (tree.__class__, *[(k, structure(v)) for k, v in tree.items()])
    if isinstance(tree, (tuple, list)):
        return (tree.__class__, *map(structure, tree))
    return None


def tree_map(function: Callable, tree):
    """The structure with ``function`` applied to every leaf."""
    leaves, unflatten = flatten(tree)
    return unflatten([function(leaf) for leaf in leaves])
