"""Saving and loading of nested data (``save``, ``load``) and training runs (``save_checkpoint``).

Files are safetensors: a JSON header and raw array bytes. Loading one never runs code from it.
"""

from __future__ import annotations

from gpugrad.io.checkpoint import load_checkpoint, save_checkpoint
from gpugrad.io.errors import (
    CheckpointError,
    CheckpointStructureError,
    ForeignCheckpointError,
    TruncatedCheckpointError,
)
from gpugrad.io.serialization import load, save

__all__ = [
    "CheckpointError",
    "CheckpointStructureError",
    "ForeignCheckpointError",
    "TruncatedCheckpointError",
    "load",
    "load_checkpoint",
    "save",
    "save_checkpoint",
]
