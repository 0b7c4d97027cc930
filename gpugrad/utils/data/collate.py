"""Turning a list of samples into one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import gpugrad as gg

__all__ = ["default_collate", "default_convert"]


def default_collate(batch: Sequence[Any]) -> Any:
    """Stack a list of samples into a batch with one more leading dimension.

    Tensors and arrays are stacked; floats become float64 and ints int64 tensors; strings and bytes
    stay a list; dicts, named tuples and sequences are collated member by member (a tuple of members
    becomes a list, as in torch).

    Raises:
        RuntimeError: samples of different shapes or lengths, with both of them.
        TypeError: samples of a type that has no rule.

    Example:
        >>> from gpugrad.utils.data import default_collate
        >>> default_collate([(1, "a"), (2, "b")])
        [tensor([1, 2]), ('a', 'b')]
    """
    first = batch[0]
    if isinstance(first, gg.Tensor):
        _same_shape([tuple(sample.shape) for sample in batch])
        return gg.stack(list(batch), 0)
    if isinstance(first, np.ndarray | np.generic):
        if not gg.dtypes.is_number(first.dtype):
            raise TypeError(
                f"default_collate: arrays of dtype {first.dtype} cannot become a tensor; pass a "
                "collate_fn that handles them"
            )
        _same_shape([np.shape(sample) for sample in batch])
        return gg.from_numpy(np.stack(batch))
    if isinstance(first, float):
        return gg.tensor(batch, dtype=gg.float64)
    if isinstance(first, int):
        return gg.tensor(batch)
    if isinstance(first, str | bytes):
        return batch
    return _collate_members(first, batch)


def _collate_members(first: Any, batch: Sequence[Any]) -> Any:
    if isinstance(first, Mapping):
        members = {key: default_collate([sample[key] for sample in batch]) for key in first}
        return _like(first, members)
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(default_collate(member) for member in zip(*batch, strict=True)))
    if isinstance(first, Sequence):
        lengths = [len(sample) for sample in batch]
        if len(set(lengths)) > 1:
            raise RuntimeError(
                f"each element in list of batch should be of equal size, got lengths {lengths}; "
                "pass a collate_fn that pads or groups them"
            )
        return [default_collate(member) for member in zip(*batch, strict=True)]
    raise TypeError(
        "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found "
        f"{type(first).__name__}; pass a collate_fn that handles it"
    )


def _like(mapping: Any, members: dict[Any, Any]) -> Any:
    """The members as a mapping of the same type."""
    return members if type(mapping) is dict else type(mapping)(members)


def _same_shape(shapes: list[tuple[int, ...]]) -> None:
    for position, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(shapes[0])} at entry 0 "
                f"and {list(shape)} at entry {position}; resize the samples or pass a collate_fn "
                "that pads them"
            )


def default_convert(data: Any) -> Any:
    """Turn the arrays of one sample into tensors and leave the rest; for ``batch_size=None``.

    Example:
        >>> import numpy as np
        >>> from gpugrad.utils.data import default_convert
        >>> default_convert({"x": np.zeros(2, np.float32), "name": "a"})
        {'x': tensor([0., 0.]), 'name': 'a'}
    """
    if isinstance(data, np.ndarray | np.generic) and gg.dtypes.is_number(data.dtype):
        return gg.as_tensor(data)
    if isinstance(data, Mapping):
        members = {key: default_convert(value) for key, value in data.items()}
        return _like(data, members)
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(default_convert(value) for value in data))
    if isinstance(data, tuple | list):
        return [default_convert(value) for value in data]
    return data
