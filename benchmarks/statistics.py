"""From samples to a line of the table: medians, spread, and when a ratio may be printed at all."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass

WIDEST_SPREAD = 0.25  # of the median ratio; beyond it the machine was too noisy to say anything
WIDEST_SAMPLES = 1.0  # of the median; beyond it the samples of one library decide nothing
BUSY = 0.2  # cores used by other programs, from which times of several threads mean little


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a set of numbers."""

    median: float
    low: float
    high: float
    smallest: float

    @classmethod
    def of(cls, numbers: list[float]) -> Spread:
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high, min(numbers))

    @property
    def width(self) -> float:
        """Interquartile range as a part of the median."""
        return (self.high - self.low) / self.median

    def overlaps(self, other: Spread) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Comparison:
    ours: Spread
    theirs: Spread
    ratio: Spread  # of the medians, round by round
    goal: float | None

    @property
    def distinct(self) -> bool:
        """Whether the ratio is more than noise: quartiles lie apart, and the rounds agree."""
        return self.ratio.width <= WIDEST_SPREAD and not self.ours.overlaps(self.theirs)

    @property
    def direction(self) -> str | None:
        """`faster` or `slower` where that much is certain, even if by how much is not."""
        if self.ours.overlaps(self.theirs):
            return None
        if self.ratio.high < 1:
            return "faster"
        return "slower" if self.ratio.low > 1 else None

    @property
    def verdict(self) -> str:
        """`met` or `missed` if three quarters of steady enough rounds say so, else `unclear`."""
        if self.goal is None:
            return ""
        if max(self.ours.width, self.theirs.width) > WIDEST_SAMPLES:
            return "unclear"
        if self.ratio.high <= self.goal:
            return "met"
        return "missed" if self.ratio.low > self.goal else "unclear"

    def as_dict(self) -> dict[str, object]:
        return {
            "ours": asdict(self.ours),
            "theirs": asdict(self.theirs),
            "ratio": asdict(self.ratio) if self.distinct else None,
            "direction": self.direction,
            "goal": self.goal,
            "verdict": self.verdict,
        }


def compare(ours: list[list[float]], theirs: list[list[float]], goal: float | None) -> Comparison:
    """Rounds of samples of both libraries, taken in turns, to one comparison."""
    ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs)]
    return Comparison(
        Spread.of([x for one in ours for x in one]),
        Spread.of([x for one in theirs for x in one]),
        Spread.of(ratios),
        goal,
    )


def compile_seconds(first_calls: list[float]) -> float:
    """What the first calls cost beyond those after them: recording, compiling, loading.

    The first half of the calls has it all: a library that compiles at its second or third call is
    done by then. Noise of a few steps is in the figure, so it says little below a step's time.
    """
    half = len(first_calls) // 2
    steady = statistics.median(first_calls[half:])
    return max(0.0, sum(first_calls[:half]) - half * steady)


def break_even_steps(compiling: float, eager: float, static: float) -> float | None:
    """After how many steps the time spent on compiling has been saved; None if never."""
    return compiling / (eager - static) if static < eager else None


def disagreement(
    ours: dict, theirs: dict, name: str = "torch", tolerance: float = 1e-4
) -> str | None:
    """What differs beyond the tolerance from a library's losses and gradients, or None."""
    for step, (a, b) in enumerate(zip(ours["losses"], theirs["losses"], strict=True), 1):
        if not math.isclose(a, b, rel_tol=tolerance):
            return f"loss of step {step}: {a:.7g}, {name} {b:.7g}"
    if len(ours["state"]) != len(theirs["state"]):
        return f"{len(ours['state'])} gradients, {name} {len(theirs['state'])}"
    for index, ((norm, along), (norm_, along_)) in enumerate(zip(ours["state"], theirs["state"])):
        if not math.isclose(norm, norm_, rel_tol=tolerance):
            return f"gradient {index}: norm {norm:.7g}, {name} {norm_:.7g}"
        if abs(along - along_) > 10 * tolerance * norm_:  # a projection varies more than a norm
            return f"gradient {index}: projection {along:.7g}, {name} {along_:.7g}"
    return None
