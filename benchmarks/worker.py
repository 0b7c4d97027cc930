"""One (row, library, mode) in a process of its own, driven line by line by the runner.

    python -m benchmarks.worker ROW LIBRARY MODE THREADS SEED

Writes one JSON object when the row is built and its losses are known, then answers each line on
stdin: `measure SECONDS` with a list of samples, `finish` with page faults and peak memory. Between
commands the process waits, so that the runner can take turns between libraries.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

CHECKED_STEPS = 10
SHORTEST_SAMPLE = 2e-3  # seconds; a sample is as many steps as take this long


def eager(lib: Any, step: Callable[[], Any]) -> Callable[[], Any]:
    return step


# How a library may run a step. Static modes and other peers join here.
MODES: dict[tuple[str, str], Callable[[Any, Callable[[], Any]], Callable[[], Any]]] = {
    ("torch", "eager"): eager,
    ("gpugrad", "eager"): eager,
}


def fingerprint(tensor: Any) -> list[float]:
    """Norm, and projection on a fixed random direction: a wrong gradient shares neither."""
    import numpy as np

    values = tensor.detach().numpy().astype(np.float64).ravel()
    direction = np.random.default_rng(values.size).standard_normal(values.size)
    return [float(np.linalg.norm(values)), float(values @ direction)]


def blas_in_use() -> list[dict[str, Any]]:
    """The BLAS and OpenMP libraries loaded in this process, with kernel and threads."""
    from threadpoolctl import threadpool_info

    keys = ("user_api", "internal_api", "version", "architecture", "num_threads")
    return [{key: entry.get(key) for key in keys} for entry in threadpool_info()]


def page_faults() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_megabytes() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def samples(step: Callable[[], Any], steps: int, seconds: float) -> list[float]:
    """Seconds per step of consecutive blocks of `steps` steps, at least two blocks."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        found.append((time.perf_counter() - start) / steps)
    return found


def steps_per_sample(step: Callable[[], Any]) -> int:
    """Warms up, then chooses a block long enough for the clock."""
    step()
    seconds = min(samples(step, 1, 0.1))
    return max(1, round(SHORTEST_SAMPLE / seconds))


def serve(answer: Callable[[dict[str, Any]], None]) -> None:
    row_name, library, mode, threads, seed = sys.argv[1:]
    start = time.perf_counter()
    lib = importlib.import_module(library)
    import_seconds = time.perf_counter() - start
    if hasattr(lib, "set_num_threads"):
        lib.set_num_threads(int(threads))

    from benchmarks.workloads import OVERHEAD, ROWS

    plain_step, state = {**ROWS, **OVERHEAD}[row_name].build(lib, int(seed))
    step = MODES[library, mode](lib, plain_step)
    losses = [float(step().detach().sum().item()) for _ in range(CHECKED_STEPS)]
    answer(
        {
            "losses": losses,
            "state": [fingerprint(tensor) for tensor in state()],
            "version": str(lib.__version__),
            "import_seconds": import_seconds,
            "blas": blas_in_use(),
        }
    )
    block = 0
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "measure":
            block = block or steps_per_sample(step)
            cpu = time.process_time()
            found = samples(step, block, float(arguments[0]))
            answer({"samples": found, "cpu_seconds": time.process_time() - cpu})
        else:  # finish
            before = page_faults()
            for _ in range(10):
                step()
            after = page_faults()
            faults = None if before is None or after is None else (after - before) / 10
            answer({"page_faults_per_step": faults, "peak_megabytes": peak_megabytes()})
            return


def main() -> None:
    # The protocol keeps stdout for itself; whatever a library prints goes to stderr.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        serve(answer)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})


if __name__ == "__main__":
    main()
