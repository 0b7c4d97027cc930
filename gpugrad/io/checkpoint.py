"""Everything a training run needs to continue as if it had not stopped, in one file."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.io.errors import CheckpointStructureError
from gpugrad.io.serialization import load, save

__all__ = ["load_checkpoint", "save_checkpoint"]

_KIND = "gpugrad training checkpoint"
_PARTS = ("model", "optimizer", "scheduler", "loader")


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    **extra: Any,
) -> None:
    """Write the state of a training run and of all random number generators to one file.

    Args:
        path: the file.
        model, optimizer, scheduler, loader: objects with ``state_dict()``; those left out are not
        saved. **extra: anything :func:`gpugrad.io.save` stores: ``epoch=3``, ``history=[...]``.

    Example:
        >>> import os, tempfile
        >>> import gpugrad as gg
        >>> from gpugrad import io
        >>> path = os.path.join(tempfile.mkdtemp(), "run.safetensors")
        >>> model = gg.nn.Linear(2, 1)
        >>> io.save_checkpoint(path, model=model, epoch=3)
        >>> io.load_checkpoint(path, model=gg.nn.Linear(2, 1))["epoch"]
        3
    """
    reserved = sorted({"kind", "rng", "version"} & extra.keys())
    if reserved:
        raise ValueError(f"save_checkpoint uses the names {reserved} itself: choose others")
    content: dict[str, Any] = {"kind": _KIND, "version": 1, "rng": _rng_state()}
    for name, part in zip(_PARTS, (model, optimizer, scheduler, loader), strict=True):
        if part is not None:
            content[name] = part.state_dict()
    save({**content, **extra}, path)


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    optimizer: Any = None,
    scheduler: Any = None,
    loader: Any = None,
    rng: bool = True,
    map_location: Any = None,
) -> dict[str, Any]:
    """Restore objects from a file of :func:`save_checkpoint`; return all its content as a dict.

    Training continues bit for bit when the same objects, made with the same options, are restored
    and ``rng`` is True.

    Args:
        path: the file.
        model, optimizer, scheduler, loader: objects with ``load_state_dict()`` to restore.
        rng: restore the generators of gpugrad, NumPy and Python.
        map_location: device to read the tensors to; default: where they were saved from.

    Raises:
        CheckpointStructureError: the file is not a training checkpoint, or lacks a part that was
            asked for.
        CheckpointError: as :func:`gpugrad.io.load`.
    """
    content = load(path, map_location=map_location)
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise CheckpointStructureError(
            f"{path} was not written by save_checkpoint: it holds {_describe(content)}. Read it "
            "with gpugrad.load and pass the parts to load_state_dict yourself."
        )
    wanted = dict(zip(_PARTS, (model, optimizer, scheduler, loader), strict=True))
    missing = [name for name, part in wanted.items() if part is not None and name not in content]
    if missing:
        present = [name for name in _PARTS if name in content]
        raise CheckpointStructureError(
            f"{path} has no state for {', '.join(missing)}, only for "
            f"{', '.join(present) or 'nothing'}: leave these arguments out, or save them too"
        )
    for name, part in wanted.items():
        if part is not None:
            part.load_state_dict(content[name])
    if rng:
        _set_rng_state(content["rng"])
    return content


def _rng_state() -> dict[str, Any]:
    return {
        "gpugrad": gg.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    gg.set_rng_state(state["gpugrad"].cpu())
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


def _describe(content: Any) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    keys = ", ".join(map(str, list(content)[:5]))
    return f"a dict with the keys {keys}{', ...' if len(content) > 5 else ''}"
