"""What can be wrong with a checkpoint file.

Each message names the file, what was found, and what to do next.
"""

from __future__ import annotations

from gpugrad.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "CheckpointStructureError",
    "ForeignCheckpointError",
    "TruncatedCheckpointError",
]


class TruncatedCheckpointError(CheckpointError):
    """The file ends before the data its header announces: a copy or a disk that gave out."""


class ForeignCheckpointError(CheckpointError):
    """The file is not safetensors but a pickle, an archive of ``torch.save``, or something else."""


class CheckpointStructureError(CheckpointError):
    """A sound file without the content asked for: a damaged structure, or missing parts."""
