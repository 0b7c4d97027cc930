"""Utilities: :mod:`gpugrad.utils.data` (datasets, loaders) and :mod:`gpugrad.utils.environment`."""

from __future__ import annotations

from gpugrad.utils import data

__all__ = ["data"]
