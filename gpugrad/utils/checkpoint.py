"""torch's place for :func:`gpugrad.autograd.checkpoint`."""

from __future__ import annotations

import gpugrad as gg

checkpoint = gg.autograd.checkpoint
checkpoint_sequential = gg.autograd.checkpoint_sequential

__all__ = ["checkpoint", "checkpoint_sequential"]
