"""One process for each (row, library, mode): results compared first, then measured in turns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import busy_seconds, child_environment
from benchmarks.statistics import Comparison, compare, disagreement

ROOT = Path(__file__).resolve().parent.parent
PAUSE = 0.05  # seconds between turns: worker threads spin for a while after their last job


class WorkerError(Exception):
    """A library could not run a row."""


class Worker:
    """A measuring process; `with` ends it."""

    def __init__(self, row: str, library: str, mode: str, threads: int, seed: int) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", row, library, mode]
        self.process = subprocess.Popen(
            [*command, str(threads), str(seed)],
            cwd=ROOT, env=child_environment(threads), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, stderr = self.process.communicate()
            raise WorkerError(
                f"the process died: {stderr.strip()[-400:] or self.process.returncode}"
            )
        message = json.loads(line)
        if "error" in message:
            raise WorkerError(message["error"] + "\n" + message["traceback"])
        return message

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.hear()


@dataclass
class Result:
    """A row measured for a library beside torch, or why not."""

    row: str
    library: str
    mode: str
    comparison: Comparison | None = None
    problem: str | None = None
    busy: float | None = None  # cores that other programs used meanwhile
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "library": self.library,
            "mode": self.mode,
            "comparison": self.comparison and self.comparison.as_dict(),
            "problem": self.problem,
            "used_by_others": self.busy,
            "details": self.details,
        }


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure."""

    threads: int = 2
    seed: int = 0
    rounds: int = 9
    seconds: float = 0.12


def measure(
    row: str, goal: float | None, plan: Plan, library: str = "gpugrad", mode: str = "eager"
) -> Result:
    """One row: both libraries built and compared, then timed in turns (A B, B A, ...)."""
    result = Result(row, library, mode)
    try:
        with (
            Worker(row, library, mode, plan.threads, plan.seed) as our,
            Worker(row, "torch", "eager", plan.threads, plan.seed) as their,
        ):
            theirs = their.hear()
            ours = our.hear()
            result.details = {library: ours, "torch": theirs}
            result.problem = disagreement(ours, theirs)
            if result.problem:
                return result
            result.comparison, result.busy = take_turns(our, their, goal, plan)
            ours |= our.ask("finish")
            theirs |= their.ask("finish")
    except WorkerError as error:
        result.problem = str(error)
    return result


def take_turns(
    our: Worker, their: Worker, goal: float | None, plan: Plan
) -> tuple[Comparison, float | None]:
    our.ask(f"measure {plan.seconds}")  # warm up, choose the length of a sample
    their.ask(f"measure {plan.seconds}")
    rounds: dict[Worker, list[list[float]]] = {our: [], their: []}
    elapsed = used = 0.0
    before = busy_seconds()
    start = time.perf_counter()
    for turn in range(plan.rounds):
        for worker in (our, their) if turn % 2 == 0 else (their, our):
            time.sleep(PAUSE)
            answer = worker.ask(f"measure {plan.seconds}")
            rounds[worker].append(answer["samples"])
            used += answer["cpu_seconds"]
    elapsed = time.perf_counter() - start
    after = busy_seconds()
    busy = None
    if before is not None and after is not None:
        busy = max(0.0, (after - before - used) / elapsed)  # in processors
    return compare(rounds[our], rounds[their], goal), busy


def import_times(modules: tuple[str, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of `import module` in fresh processes, in turns.

    The first round, which fills the disk cache, is left out.
    """
    code = (
        "import time, sys; start = time.perf_counter(); __import__(sys.argv[1]); "
        "print(time.perf_counter() - start)"
    )
    found: dict[str, list[float]] = {module: [] for module in modules}
    for turn in range(rounds + 1):
        for module in modules:
            ran = subprocess.run(
                [sys.executable, "-c", code, module],
                cwd=ROOT, env=child_environment(1), capture_output=True, text=True, check=False,
            )  # fmt: skip
            if ran.returncode:
                raise WorkerError(f"import {module} failed:\n{ran.stderr}")
            if turn:
                found[module].append(float(ran.stdout))
    return found
