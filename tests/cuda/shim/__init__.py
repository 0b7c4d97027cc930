"""CUDA C++ kernels on a CPU: see README.md of this folder."""

from .compiler import ShimError, build, build_all, build_cupy, missing
from .kernel import (
    FORWARD,
    REVERSE,
    SCHEDULES,
    SHUFFLED,
    Kernel,
    Module,
    same_in_every_schedule,
)
from .launches import Inside, Launch, Pointer, replay

__all__ = [
    "FORWARD",
    "REVERSE",
    "SCHEDULES",
    "SHUFFLED",
    "Inside",
    "Kernel",
    "Launch",
    "Module",
    "Pointer",
    "ShimError",
    "build",
    "build_all",
    "build_cupy",
    "missing",
    "replay",
    "same_in_every_schedule",
]
