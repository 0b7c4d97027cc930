"""The arithmetic of the speed tables, the reports, and that every row agrees in every library."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace

import pytest

from benchmarks import __main__ as command
from benchmarks import page, report
from benchmarks.peers import PEERS, REFERENCES, Running
from benchmarks.runner import Measured, Plan, Result, check, measure
from benchmarks.statistics import (
    Spread,
    break_even_steps,
    compare,
    compile_seconds,
    disagreement,
)
from benchmarks.worker import checked_steps
from benchmarks.workloads import EVERY, NEAR, OVERHEAD, ROWS, SWEEP


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


def test_a_direction_can_be_sure_where_a_ratio_is_not() -> None:
    found = compare(rounds(1, 2, 4, 5), rounds(20, 20, 20, 20), goal=None)
    assert found.direction == "faster"
    assert compare(rounds(20, 20, 20, 20), rounds(1, 2, 4, 5), goal=None).direction == "slower"
    assert compare(rounds(9, 11, 10, 10), rounds(10, 9, 11, 10), goal=None).direction is None


def test_compile_time_is_what_the_first_calls_cost_more() -> None:
    steady = [1.0] * 5
    assert compile_seconds([4.0, 1.0, 3.0, 1.0, 1.0, *steady]) == pytest.approx(5.0)
    assert compile_seconds([0.9] * 5 + steady) == 0.0, "faster first calls are noise"
    assert compile_seconds([2.0, 1, 1, 1, 1, 1, 1, 50, 1, 1]) == pytest.approx(1.0), "an outlier"


def test_break_even() -> None:
    assert break_even_steps(1.0, eager=0.3, static=0.1) == pytest.approx(5)
    assert break_even_steps(1.0, eager=0.1, static=0.1) is None
    assert break_even_steps(1.0, eager=0.1, static=0.3) is None


# ---- rows ----------------------------------------------------------------------------------------

SMALL: dict[str, dict[str, int]] = {  # shapes that run in milliseconds, none of them a power of two
    "w1": {"points": 17},
    "w2": {"batch": 7, "pixels": 30, "hidden": 11},
    "w3": {"batch": 7, "features": 19, "hidden": 23},
    "w4/8": {"batch": 3},
    "w5": {"rows": 3, "columns": 5},
    "w6": {"elements": 1234},
    "w7": {"rows": 5, "columns": 13},
    "w8": {"batch": 2, "length": 9, "width": 64, "layers": 2},
    "w9": {"batch": 3, "channels": 6, "side": 7},
    "w10": {"values": 77},
    "w10b": {"steps": 6, "batch": 5, "hidden": 9},
    "w11": {"words": 50, "length": 6, "batch": 9, "width": 5},
    "w12": {"batch": 11, "features": 5, "hidden": 7},
}


def first_steps(step, state, count: int = 3) -> dict:
    """What a worker says about the first steps of a row."""
    return checked_steps(Running(step, state), count)


def test_the_small_shapes_cover_every_program() -> None:
    assert {ROWS[name].program for name in SMALL} == {row.program for row in ROWS.values()}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("library", ["numpy", "jax", "tensorflow"])
def test_programs_of_another_style_agree(library: str, name: str) -> None:
    """With gpugrad in float32, three updates: the benchmark compares ten with torch."""
    import gpugrad

    pytest.importorskip(library)
    row = replace(ROWS[name], shape=SMALL[name])
    programs = importlib.import_module(f"benchmarks.{library}_workloads")
    program = getattr(programs, row.program.__name__, None)
    if program is None:
        assert library == "numpy"
        assert name in ("w4/8", "w8", "w9"), "left out by hand, as numpy_workloads.py says"
        return
    wrap = [lambda step: step] if library == "tensorflow" else []
    theirs = first_steps(*program(row.data(0, **row.shape), *wrap))
    assert disagreement(theirs, first_steps(*row.build(gpugrad, 0)), "gpugrad") is None


@pytest.mark.parametrize("name", SMALL)
def test_compiled_steps_agree_with_eager_ones(name: str) -> None:
    import gpugrad

    if not hasattr(gpugrad, "compile"):
        pytest.skip("this gpugrad has no static mode")
    row = replace(ROWS[name], shape=SMALL[name])
    step, state = row.build(gpugrad, 0)
    static = first_steps(gpugrad.compile(step), state, 6)
    assert disagreement(static, first_steps(*row.build(gpugrad, 0), 6), "eager") is None


def test_rows_nearby_and_of_the_sweep_differ_in_shape_only() -> None:
    for name, row in NEAR.items():
        original = ROWS[name.split("~")[0]]
        assert (row.program, row.goal) == (original.program, original.goal)
        assert row.shape != original.shape
    for name, row in SWEEP.items():
        weights = row.data(0, **row.shape).weights
        sizes = [array.size for array in weights.values()] + [len(w) for w in weights.values()]
        assert int(name.split("/")[1]) in sizes, "a row's name ends in its size"


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("w3", "w6", "w8")])
def test_rows_agree_with_torch(name: str) -> None:
    """Three steps of every row of moderate size; the benchmark itself compares ten steps of all."""
    agrees_with_torch(ROWS[name].build)


@pytest.mark.parametrize("name", OVERHEAD)
def test_single_ops_agree_with_torch(name: str) -> None:
    agrees_with_torch(OVERHEAD[name].build)


def agrees_with_torch(build) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    import gpugrad

    ours, theirs = (first_steps(*build(lib, 0)) for lib in (gpugrad, torch))
    assert disagreement(ours, theirs) is None


# ---- choosing ------------------------------------------------------------------------------------


def test_names_choose_rows() -> None:
    def names(*chosen: str) -> list[str]:
        return [row.name for row in command.chosen_rows(list(chosen))]

    assert names() == list(ROWS)
    assert names("w4") == ["w4/8", "w4/64"]
    assert names("w1") == ["w1"], "not w10 to w12"
    assert names("w2", "chain/64", "w1~1") == ["w2", "w1~1", "chain/64"]
    assert [row.name for row in command.chosen(["w4"], NEAR)] == ["w4/8~1", "w4/64~1"]
    with pytest.raises(SystemExit, match="no such row: w99"):
        command.refuse_unknown(["w1", "w99"])


def test_names_choose_peers() -> None:
    ours = [peer.name for peer in command.chosen_peers(["numpy", "gpugrad"])]
    assert ours == ["gpugrad eager", "gpugrad static", "numpy by hand"]
    assert [peer.name for peer in command.chosen_peers(["gpugrad static"])] == ["gpugrad static"]
    with pytest.raises(SystemExit, match="no such peer: theano"):
        command.chosen_peers(["gpugrad", "theano"])


# ---- processes -----------------------------------------------------------------------------------


def test_a_row_measured_in_processes() -> None:
    peers = (PEERS["gpugrad eager"], PEERS["numpy by hand"])
    found = measure(ROWS["w1"], Plan(peers, threads=1, rounds=2, seconds=0.001)).as_dict()
    assert found["reference"] == "gpugrad eager"
    for peer in peers:
        measured = found["peers"][peer.name]
        assert measured["problem"] is None
        assert 0 < measured["seconds"]["median"] < 1
        assert len(measured["details"]["first_calls"]) == 10
        assert measured["details"]["peak_megabytes"] > 10
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_compiling_and_recording_are_told_apart() -> None:
    peers = (PEERS["gpugrad eager"], PEERS["gpugrad static"])
    found = measure(ROWS["w1"], Plan(peers, threads=1, rounds=2, seconds=0.001)).as_dict()
    measured = found["peers"]["gpugrad static"]
    own, first = measured["own_compile_seconds"], measured["compile_seconds"]
    assert own.keys() == first.keys() == {"cold", "cached"}
    for kind in own:
        assert 0 < own[kind] < first[kind], "recording is not compiling"
    assert measured["details"]["info"]["stats"]["compile_seconds"] >= own["cold"]
    assert measured["details"]["info"]["recording"] > 1
    assert found["peers"]["gpugrad eager"]["own_compile_seconds"] == {}


def test_a_row_nobody_wrote_is_absent_and_no_problem() -> None:
    plan = Plan((PEERS["numpy by hand"],), threads=1, rounds=2, seconds=0.001)
    measured = measure(ROWS["w9"], plan).peers["numpy by hand"]
    assert measured.absent == "not written for numpy"
    assert measured.problem is None
    assert not measured.rounds


def test_wrong_losses_are_a_problem() -> None:
    good = {"losses": [2.0, 1.0], "state": []}
    result = Result(ROWS["w1"])
    result.peers = {
        "gpugrad static": Measured(details={"losses": [2.0, 1.1], "state": []}),
        "jax jit": Measured(details=dict(good)),
        "torch eager": Measured(details=good),
    }
    check(result)
    assert "loss of step 2" in str(result.peers["gpugrad static"].problem)
    assert result.peers["jax jit"].problem is None


# ---- reports -------------------------------------------------------------------------------------


def figures(name: str, noisy: bool = False, **medians: float) -> dict:
    """A row's result with these medians of peers (`_` for a space), steady or not."""
    result = Result(EVERY[name])
    for i, (peer, median) in enumerate(medians.items()):
        turns = [0.99, 1.0, 1.0, 1.01]
        if noisy:  # each peer in turns of its own, so that their ratios vary, too
            turns = [[0.3, 1.7, 0.6, 1.2][(i + j) % 4] for j in range(4)]
        measured = Measured(rounds=[[median * t * s for s in (0.99, 1, 1.01)] for t in turns])
        measured.details = {"peak_megabytes": 100.0, "page_faults_per_step": 0.0}
        if peer == "torch_eager":
            measured.details |= {"info": {"ops": 20}, "losses": []}
        if PEERS[peer.replace("_", " ")].static:
            measured.first_calls = {"cold": 0.5, "cached": 0.04}
        if peer == "gpugrad_static":
            measured.compiling = {"cold": 0.3, "cached": 0.06}
            measured.details["info"] = {"recording": 2.5}
        result.peers[peer.replace("_", " ")] = measured
    result.busy = 0.0
    return result.as_dict()


def content(*results: dict) -> dict:
    environment = {"cpu": "a <fast> one", "cores": 2, "threads": 2, "python": "3.11", "commit": "c",
                   "versions": {"numpy": "2.4"}}  # fmt: skip
    return {
        "environment": environment,
        "import_seconds": {"numpy": [0.1, 0.1], "gpugrad": [0.12, 0.12]},
        "results": list(results),
        "sweep": [figures("chain/64", gpugrad_eager=4e-4, gpugrad_static=4e-5)],
        "ops": [],
        "near": [],
    }


STEADY = figures(
    "w1", gpugrad_eager=30e-6, gpugrad_static=3e-6, torch_eager=50e-6, jax_jit=10e-6, tf_eager=2e-3,
    numpy_by_hand=4e-6,
)  # fmt: skip
NOISY = figures("w2", noisy=True, gpugrad_eager=3e-4, gpugrad_static=2.6e-4, torch_eager=3e-4)


def cells(columns: list[report.Column], result: dict) -> dict[str, str]:
    return {name: cell(result) for name, cell in columns}


def test_static_is_judged_against_the_best_peer() -> None:
    """JAX is the fastest library; the gradients by hand are faster but a yardstick only."""
    found = cells(report.static_columns(), STEADY)
    assert found["best peer"].startswith("jax jit  10 µs")
    assert (found["ratio"], found["goal"], found["verdict"]) == ("0.30", "0.2", "missed")
    assert (found["over eager"], found["compile"], found["cached"]) == ("10x", "300 ms", "60 ms")
    assert (found["recording"], found["first calls"]) == ("2.5", "500 ms")
    assert found["repaid after"] == "19,000", "0.5 s / 27 µs, to two digits"


def test_no_ratio_within_the_noise_anywhere() -> None:
    for columns in (report.eager_columns(), report.static_columns()):
        found = cells(columns, NOISY)
        assert found["ratio"] == "within noise"
        assert found["verdict"] == "unclear"
    assert found["over eager"] == "within noise"
    assert found["repaid after"] == ""
    text = " ".join(page.answer([NOISY]))
    assert "faster than eager in 0 of 1 rows; within noise in w2" in text
    assert not re.search(r"\dx", text)


def test_answers() -> None:
    text = " ".join(page.answer([STEADY, NOISY]))
    assert "faster than eager in 1 of 2 rows, by 10x (median 10x); within noise in w2" in text
    assert "less than 10 µs of work per operation (w1): 10x" in text
    assert "repaid after 19,000 steps" in text
    assert "ahead in 1 of 2 rows and meets the goal in 0" in text
    assert "compile, cold: at most 300 ms (w1), goal 1 s: met" in text
    assert "compile, cached: at most 60 ms (w1), goal 50 ms: missed by w1" in text
    assert "a recorded call, in eager steps: at most 2.5 (w1), goal 3.0: met" in text
    assert "first calls beyond steady ones, cached: at most 40 ms (w1)" in text


def test_without_a_static_mode_the_page_says_so() -> None:
    result = figures("w1", gpugrad_eager=3e-5, torch_eager=5e-5, torch_compile=1e-4)
    result["peers"]["gpugrad static"] = Measured(absent="has no compile").as_dict()
    assert page.answer([result])[0].startswith("gpugrad's static mode was not measured")
    assert cells(report.static_columns(), result)["verdict"] == "gpugrad static: has no compile"
    assert report.problems([result]) == []


def test_the_page_is_one_file() -> None:
    """Nothing is loaded from elsewhere, text is escaped, and every plot is there."""
    pytest.importorskip("matplotlib")
    html = page.page(content(STEADY, NOISY))
    assert html.count("<svg") == 5
    assert "a &lt;fast&gt; one" in html
    assert not re.search(
        r"""(src|href)=["']?(?!#)|url\((?!#)|@import""", re.sub("xlink:href", "", html)
    )
    ids = re.findall(r' id="([^"]+)"', html)
    clips = [name for name in ids if re.fullmatch(r"[pm][0-9a-f]{10}", name)]
    assert len(clips) == len(set(clips)), "ids of one plot do not reach into another"


def test_a_saved_file_can_be_shown_again(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.write("some", content(STEADY, NOISY))
    assert report.read("some") == content(STEADY, NOISY)
    command.show(report.read("some"))
    shown = capsys.readouterr().out
    assert "within noise" in shown
    assert "missed" in shown
    assert "| w1 | linear regression, 200 points | 50 µs" in report.markdown("some")
    (tmp_path / "old.json").write_text('{"results": [{"row": "w1"}]}')
    with pytest.raises(ValueError, match="measure anew"):
        report.read("old")


def test_references_are_peers() -> None:
    assert set(REFERENCES) <= set(PEERS)
