"""Process-wide settings and the per-thread modes of the engine.

Everything that makes an operation "unusual" (gradients switched off, tensors that carry tangents or
batches, a recorder, anomaly mode, autocasting) counts itself in ``modes.unusual``; all but
switched-off gradients count in ``modes.special`` too. The short path of an operation looks at these
numbers and nothing else; only when one is not zero does it ask which mode its own thread is in, or
leave the call to the general way.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import Any


class _ThreadModes(threading.local):
    grad = True
    inference = False
    anomaly = False
    levels = 0  # open transformations whose tensors are lifted (jvp, vmap), see lifted.py
    batches: Any = ()  # those of them that are vmap: batching.Batch, from the outermost
    recording: Any = None  # the static.record.Recorder that looks
    autocast: Any = None  # what amp.autocast has set, see autocasting.py
    autocast_depth = 0
    autocast_casts: Any = None


class Modes:
    """Modes of the calling thread, and how many contexts are open in all threads together."""

    __slots__ = ("_lock", "local", "special", "unusual")

    def __init__(self):
        self.unusual = self.special = 0
        self.local = _ThreadModes()
        self._lock = threading.Lock()

    def enter(self, special: bool = False) -> None:
        """Count a context that was opened; ``special`` if it does more than switch gradients."""
        with self._lock:
            self.unusual += 1
            self.special += special

    def leave(self, special: bool = False) -> None:
        with self._lock:
            self.unusual -= 1
            self.special -= special

    @contextmanager
    def open(self):
        """Count a special context for the duration of the ``with`` block."""
        self.enter(special=True)
        try:
            yield
        finally:
            self.leave(special=True)


modes = Modes()


def lone_recorder() -> Any:
    """The recorder of the calling thread, if it is all that is special there; None else."""
    local = modes.local
    recorder = local.recording
    if recorder is None or modes.special == 1:  # it is all that is special in any thread
        return recorder
    alone = local.autocast is None and not local.levels and not local.anomaly
    return recorder if alone else None


@contextmanager
def grad_mode(enabled: bool):
    """Record operations in this thread, or not."""
    local = modes.local
    outer, local.grad = local.grad, enabled
    modes.enter()
    try:
        yield
    finally:
        modes.leave()
        local.grad = outer


class _Settings:
    """Defaults that a user may change through public functions."""

    __slots__ = ("cuda_kernels", "default_device", "default_dtype", "matmul_modes", "num_threads")

    def __init__(self):
        self.default_dtype: Any = None  # set by dtypes.py, which knows the names
        self.default_device: Any = None
        self.num_threads: int | None = None  # None: as many as the machine lends this process
        # Whether CUDA kernels are used; without them CuPy's functions compute everything.
        self.cuda_kernels = os.environ.get("GPUGRAD_CUDA_KERNELS") != "0"
        # How products of matrices on CUDA may round, bits of backend/cublas.py: not at all.
        self.matmul_modes = 0


settings = _Settings()


class FollowedInteger:
    """What ``item()`` gives of an integer while a recorder follows it (static/numbers.py): no int,
    but taken where an int is."""

    __slots__ = ()

    def __index__(self) -> int:
        raise NotImplementedError
