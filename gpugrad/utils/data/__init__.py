"""Datasets, samplers and the loader, with PyTorch's names (``torch.utils.data``)."""

from __future__ import annotations

from gpugrad.utils.data.collate import default_collate, default_convert
from gpugrad.utils.data.dataloader import DataLoader
from gpugrad.utils.data.dataset import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)
from gpugrad.utils.data.sampler import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from gpugrad.utils.data.seeding import sample_generator

__all__ = [
    "BatchSampler",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "IterableDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "Subset",
    "TensorDataset",
    "default_collate",
    "default_convert",
    "random_split",
    "sample_generator",
]
