"""One (row, peer) in a process of its own, driven line by line by the runner.

    python -m benchmarks.worker ROW PEER THREADS SEED

Writes one JSON object when the row is built and its losses are known, then answers each line on
stdin: `measure SECONDS` with a list of samples, `finish` with page faults, peak memory and what the
library says about the step. Between commands the process waits, so that the runner can take turns
between peers.
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

from benchmarks.peers import PEERS, Absent, Running

CHECKED_STEPS = 10
SHORTEST_SAMPLE = 2e-3  # seconds; a sample is as many steps as take this long


def array(tensor: Any) -> Any:
    """The values of any library's tensor in float64."""
    import numpy as np

    plain = tensor.detach() if hasattr(tensor, "detach") else tensor
    return np.asarray(plain).astype(np.float64)


def fingerprint(tensor: Any) -> list[float]:
    """Norm, and projection on a fixed random direction: a wrong gradient shares neither."""
    import numpy as np

    values = array(tensor).ravel()
    direction = np.random.default_rng(values.size).standard_normal(values.size)
    return [float(np.linalg.norm(values)), float(values @ direction)]


def blas_in_use() -> list[dict[str, Any]]:
    """The BLAS and OpenMP libraries loaded in this process, with kernel and threads."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
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


def checked_steps(running: Running, count: int = CHECKED_STEPS) -> dict[str, Any]:
    """The first steps, each timed to the end of its work: losses, seconds, gradients."""
    losses, seconds = [], []
    for _ in range(count):
        start = time.perf_counter()
        result = running.step()
        running.wait(result)
        seconds.append(time.perf_counter() - start)
        loss, *others = result if isinstance(result, tuple) else (result,)
        losses.append(float(array(loss).sum()))
    state = [fingerprint(tensor) for tensor in (*others, *running.state())]
    return {"losses": losses, "first_calls": seconds, "state": state}


def samples(running: Running, steps: int, seconds: float) -> list[float]:
    """Seconds per step of consecutive blocks of `steps` steps, at least two blocks."""
    step: Callable[[], Any] = running.step
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(steps):
            result = step()
        running.wait(result)
        found.append((time.perf_counter() - start) / steps)
    return found


def steps_per_sample(running: Running) -> int:
    """Warms up, then chooses a block long enough for the clock."""
    seconds = min(samples(running, 1, 0.1))
    return max(1, round(SHORTEST_SAMPLE / seconds))


def serve(answer: Callable[[dict[str, Any]], None]) -> None:
    from benchmarks.workloads import EVERY

    row_name, peer_name, threads, seed = sys.argv[1:]
    peer = PEERS[peer_name]
    start = time.perf_counter()
    lib = importlib.import_module(peer.library)
    import_seconds = time.perf_counter() - start
    imported_megabytes = peak_megabytes()
    running = peer.start(EVERY[row_name], int(seed), int(threads))
    answer(
        checked_steps(running)
        | {
            "version": str(lib.__version__),
            "import_seconds": import_seconds,
            "imported_megabytes": imported_megabytes,
            "compiling": running.compiling(),
            "blas": blas_in_use(),
        }
    )
    block = 0
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "measure":
            block = block or steps_per_sample(running)
            cpu = time.process_time()
            found = samples(running, block, float(arguments[0]))
            answer({"samples": found, "cpu_seconds": time.process_time() - cpu})
        else:  # finish
            answer(last_words(running))
            return


def last_words(running: Running) -> dict[str, Any]:
    before = page_faults()
    for _ in range(10):
        running.wait(running.step())
    after = page_faults()
    faults = None if before is None or after is None else (after - before) / 10
    found = {"page_faults_per_step": faults, "peak_megabytes": peak_megabytes()}
    return found | {"info": running.info()}


def main() -> None:
    # The protocol keeps stdout for itself; whatever a library prints goes to stderr.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message, default=str) + "\n")
        channel.flush()

    try:
        serve(answer)
    except Absent as reason:
        answer({"absent": str(reason)})
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})


if __name__ == "__main__":
    main()
