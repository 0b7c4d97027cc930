"""The arithmetic of the speed table, and that every row runs and agrees with torch."""

from __future__ import annotations

import pytest

from benchmarks.statistics import Spread, compare, disagreement
from benchmarks.workloads import OVERHEAD, ROWS


def rounds(*values: float) -> list[list[float]]:
    """A round for each value, with samples one percent around it."""
    return [[0.99 * value, value, 1.01 * value] for value in values]


def test_spread() -> None:
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.smallest, spread.low, spread.median, spread.high) == (1.0, 2.0, 3.0, 4.0)
    assert spread.overlaps(Spread(6, 4, 8, 4))
    assert not spread.overlaps(Spread(6, 4.5, 8, 4))


def test_a_clear_ratio_is_printed_and_judged() -> None:
    found = compare(rounds(5, 5, 5, 5), rounds(10, 10, 10, 10), goal=0.6)
    assert found.distinct
    assert found.ratio.median == pytest.approx(0.5)
    assert found.verdict == "met"
    assert compare(rounds(7, 7, 7, 7), rounds(10, 10, 10, 10), goal=0.6).verdict == "missed"


def test_overlapping_spreads_give_no_ratio() -> None:
    found = compare(rounds(9, 11, 10, 10), rounds(10, 9, 11, 10), goal=1.0)
    assert not found.distinct
    assert found.as_dict()["ratio"] is None
    assert found.verdict == "unclear"


def test_rounds_that_disagree_give_no_ratio() -> None:
    """Far apart, but by a factor that changes from round to round: the machine was busy."""
    found = compare(rounds(1, 2, 4, 5), rounds(20, 20, 20, 20), goal=0.5)
    assert not found.ours.overlaps(found.theirs)
    assert not found.distinct


def test_wild_samples_decide_nothing() -> None:
    """All rounds say `met`, but one library's samples range over more than their median."""
    wild = [[1.0, 10.0, 100.0]] * 4
    assert compare(rounds(1, 1, 1, 1), wild, goal=0.5).verdict == "unclear"


def test_disagreement_names_what_differs() -> None:
    good = {"losses": [2.0, 1.0], "state": [[3.0, 0.5]]}
    assert disagreement(good, {"losses": [2.0, 1.00005], "state": [[3.0, 0.5]]}) is None
    assert "loss of step 2" in str(disagreement(good, {"losses": [2.0, 1.001], "state": []}))
    assert "norm" in str(disagreement(good, {"losses": [2.0, 1.0], "state": [[3.1, 0.5]]}))
    assert "projection" in str(disagreement(good, {"losses": [2.0, 1.0], "state": [[3.0, -0.5]]}))
    nan = {"losses": [float("nan"), 1.0], "state": []}
    assert "loss of step 1" in str(disagreement(nan, nan)), "NaN agrees with nothing"


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("w3", "w6", "w8")])
def test_rows_agree_with_torch(name: str) -> None:
    """Three steps of every row of moderate size; the benchmark itself compares ten steps of all."""
    check(name, ROWS[name].build)


@pytest.mark.parametrize("name", OVERHEAD)
def test_single_ops_agree_with_torch(name: str) -> None:
    check(name, OVERHEAD[name].build)


def check(name: str, build) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    import gpugrad
    from benchmarks.worker import fingerprint

    found = {}
    for lib in (gpugrad, torch):
        step, state = build(lib, 0)
        losses = [float(step().detach().sum().item()) for _ in range(3)]
        found[lib] = {"losses": losses, "state": [fingerprint(tensor) for tensor in state()]}
    assert disagreement(found[gpugrad], found[torch]) is None
