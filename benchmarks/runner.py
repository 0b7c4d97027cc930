"""One process for each (row, peer): results compared first, then measured in turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import busy_seconds, child_environment
from benchmarks.peers import PAIRS, REFERENCES, RIVALS, Peer
from benchmarks.statistics import (
    Comparison,
    Spread,
    break_even_steps,
    compare,
    compile_seconds,
    disagreement,
)
from benchmarks.workloads import Row

ROOT = Path(__file__).resolve().parent.parent
PAUSE = 0.05  # seconds between turns: worker threads spin for a while after their last job
PATIENCE = 300.0  # seconds for one answer, compiling included


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure, and whom."""

    peers: tuple[Peer, ...]
    threads: int = 2
    seed: int = 0
    rounds: int = 9
    seconds: float = 0.12


class WorkerError(Exception):
    """A library could not run a row."""


class AbsentError(Exception):
    """A library does not have this mode or this row."""


class Worker:
    """A measuring process; `with` ends it."""

    def __init__(self, row: Row, peer: Peer, plan: Plan, cache: str) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", row.name, peer.name]
        settings = {name: value.format(cache) for name, value in peer.caches.items()}
        self.process = subprocess.Popen(
            [*command, str(plan.threads), str(plan.seed)],
            cwd=ROOT, env=child_environment(plan.threads, settings), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        try:
            self.process.communicate()
        except BrokenPipeError:  # it died before it read the last command
            self.process.wait()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            in_time = timer.is_alive()
            timer.cancel()
        if not line:
            _, stderr = self.process.communicate()
            why = stderr.strip()[-400:] or self.process.returncode
            raise WorkerError(
                f"the process died: {why}" if in_time else f"no answer in {PATIENCE:.0f} s"
            )
        message = json.loads(line)
        if "absent" in message:
            raise AbsentError(message["absent"])
        if "error" in message:
            raise WorkerError(message["error"] + "\n" + message["traceback"])
        return message

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.hear()


@dataclass
class Measured:
    """What one peer did with a row, or why nothing is known."""

    rounds: list[list[float]] = field(default_factory=list)  # seconds per step
    problem: str | None = None  # it failed, or its results are wrong
    absent: str | None = None
    # seconds, "cold" and "cached": what the first calls cost beyond steady ones, and what the
    # library itself counts as compiling
    first_calls: dict[str, float] = field(default_factory=dict)
    compiling: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(x for one in self.rounds for x in one)

    def as_dict(self) -> dict[str, Any]:
        spread = Spread.of([x for one in self.rounds for x in one]) if self.rounds else None
        return {
            "seconds": spread and asdict(spread),
            "rounds": [statistics.median(one) for one in self.rounds],
            "problem": self.problem,
            "absent": self.absent,
            "compile_seconds": self.first_calls,
            "own_compile_seconds": self.compiling,
            "details": self.details,
        }


@dataclass
class Result:
    """A row measured for all peers."""

    row: Row
    peers: dict[str, Measured] = field(default_factory=dict)
    busy: float | None = None  # cores that other programs used meanwhile

    @property
    def reference(self) -> str | None:
        """The peer whose results the others must have."""
        ran = (name for name in REFERENCES if name in self.peers)
        return next((name for name in ran if "losses" in self.peers[name].details), None)

    def versus(self, ours: str, theirs: str, goal: float | None = None) -> dict[str, Any] | None:
        """One library beside another; None if one of them was not measured."""
        if not all(name in self.peers and self.peers[name].rounds for name in (ours, theirs)):
            return None
        found: Comparison = compare(self.peers[ours].rounds, self.peers[theirs].rounds, goal)
        return {"our_name": ours, "their_name": theirs} | found.as_dict()

    def best_rival(self) -> str | None:
        measured = [name for name in RIVALS if name in self.peers and self.peers[name].rounds]
        return min(measured, key=lambda name: self.peers[name].median, default=None)

    def static_pays(self) -> dict[str, Any]:
        """For each library with both modes: static beside eager, and the steps that repay it."""
        found = {}
        for library, (static, eager) in PAIRS.items():
            versus = self.versus(static, eager)
            if versus is None:
                continue
            medians = versus["theirs"]["median"], versus["ours"]["median"]
            versus["break_even_steps"] = {
                kind: break_even_steps(seconds, *medians)
                for kind, seconds in self.peers[static].first_calls.items()
            }
            found[library] = versus
        return found

    def as_dict(self) -> dict[str, Any]:
        row, rival = self.row, self.best_rival()
        return {
            "row": row.name,
            "what": row.what,
            "shape": row.shape,
            "ops": row.ops,
            "reference": self.reference,
            "eager": self.versus("gpugrad eager", "torch eager", row.goal),
            "best_rival": rival,
            "static": rival and self.versus("gpugrad static", rival, row.static_goal),
            "static_pays": self.static_pays(),
            "used_by_others": self.busy,
            "peers": {name: measured.as_dict() for name, measured in self.peers.items()},
        }


def measure(row: Row, plan: Plan) -> Result:
    """One row: built by every peer and compared, then timed in turns (A B C, C B A, ...)."""
    result = Result(row)
    with ExitStack() as folders:
        caches = {
            peer.name: folders.enter_context(tempfile.TemporaryDirectory()) for peer in plan.peers
        }
        with ExitStack() as processes:
            workers = {}
            for peer in plan.peers:  # one after the other, as the time of first calls counts
                measured = result.peers[peer.name] = Measured()
                worker = processes.enter_context(Worker(row, peer, plan, caches[peer.name]))
                if listen(worker, measured, "cold"):
                    workers[peer.name] = worker
            check(result)
            for name in list(workers):
                if result.peers[name].problem:
                    del workers[name]
            take_turns(workers, result, plan)
        for peer in plan.peers:
            if peer.static and peer.caches and result.peers[peer.name].rounds:
                from_cache(result, peer, plan, caches[peer.name])
    return result


def listen(worker: Worker, measured: Measured, kind: str) -> bool:
    """Whether the peer ran its first steps, compiling `cold` or from `cached` code."""
    try:
        measured.details = worker.hear()
    except AbsentError as reason:
        measured.absent = str(reason)
    except WorkerError as error:
        measured.problem = str(error)
    if measured.details:
        measured.first_calls[kind] = compile_seconds(measured.details["first_calls"])
        if measured.details["compiling"] is not None:
            measured.compiling[kind] = measured.details["compiling"]
    return bool(measured.details)


def check(result: Result) -> None:
    """Compare everybody's losses and gradients with those of the reference."""
    if result.reference is None:
        return
    truth = result.peers[result.reference].details
    for measured in result.peers.values():
        if measured.details:
            measured.problem = disagreement(measured.details, truth, str(result.reference))


def take_turns(workers: dict[str, Worker], result: Result, plan: Plan) -> None:
    """Measure all, in rounds; a process that dies leaves a problem and no time."""

    def ask(name: str, command: str) -> dict[str, Any]:
        try:
            return workers[name].ask(command)
        except (WorkerError, OSError) as error:
            result.peers[name] = Measured(problem=str(error))
            del workers[name]
            return {}

    command = f"measure {plan.seconds}"
    for name in list(workers):
        ask(name, command)  # warm up, choose the length of a sample
    used = 0.0
    before, start = busy_seconds(), time.perf_counter()
    for turn in range(plan.rounds):
        for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(PAUSE)
            answer = ask(name, command)
            if answer:
                result.peers[name].rounds.append(answer["samples"])
                used += answer["cpu_seconds"]
    after, elapsed = busy_seconds(), time.perf_counter() - start
    if before is not None and after is not None:
        result.busy = max(0.0, (after - before - used) / elapsed)  # in processors
    for name in list(workers):
        result.peers[name].details |= ask(name, "finish")


def from_cache(result: Result, peer: Peer, plan: Plan, cache: str) -> None:
    """The first steps again in a new process that finds compiled code on the disk."""
    measured, again = result.peers[peer.name], Measured()
    with Worker(result.row, peer, plan, cache) as worker:
        listen(worker, again, "cached")
    reference = result.peers[str(result.reference)].details
    problem = again.problem or disagreement(again.details, reference, str(result.reference))
    if problem:
        measured.problem = f"from the cache: {problem}"
    else:
        measured.first_calls |= again.first_calls
        measured.compiling |= again.compiling


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
