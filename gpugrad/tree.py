"""Nested tuples, lists and dicts of tensors, flattened and rebuilt."""

from __future__ import annotations

from collections.abc import Callable


def flatten(tree) -> tuple[list, Callable]:
    """The leaves of a nested structure in order, and a function that rebuilds it from as many new
    leaves."""
    rebuild: Callable
    kind = tree.__class__  # the functions keep no leaves alive
    if isinstance(tree, dict):
        keys = list(tree)
        children = [flatten(tree[k]) for k in keys]
        rebuild = lambda parts: kind(zip(keys, parts, strict=True))  # noqa: E731
    elif isinstance(tree, (tuple, list)):
        children = [flatten(t) for t in tree]
        named = hasattr(tree, "_fields")  # a namedtuple takes its fields one by one
        rebuild = (lambda parts: kind(*parts)) if named else kind
    else:
        return [tree], _only
    builds = [(len(leaves), build) for leaves, build in children]

    def unflatten(leaves):
        parts, start = [], 0
        for size, build in builds:
            parts.append(build(leaves[start : start + size]))
            start += size
        return rebuild(parts)

    return [leaf for leaves, _ in children for leaf in leaves], unflatten


def _only(leaves):
    return leaves[0]


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
