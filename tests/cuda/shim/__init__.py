"""CUDA C++ kernels on a CPU: see README.md of this folder."""

from .compiler import ShimError, build, build_all, build_cupy
from .kernel import (
    FORWARD,
    REVERSE,
    SCHEDULES,
    SHUFFLED,
    Kernel,
    Module,
    same_in_every_schedule,
)

__all__ = [
    "FORWARD",
    "REVERSE",
    "SCHEDULES",
    "SHUFFLED",
    "Kernel",
    "Module",
    "ShimError",
    "build",
    "build_all",
    "build_cupy",
    "same_in_every_schedule",
]
