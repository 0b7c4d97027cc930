"""Image datasets and transforms, with torchvision's names."""

from __future__ import annotations

from gpugrad.vision import datasets, transforms

__all__ = ["datasets", "transforms"]
