"""Tables for the terminal and the README, and the JSON file behind them.

Everything here reads results as `Result.as_dict` writes them, so a saved file can be shown again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS
from benchmarks.statistics import BUSY, Spread

RESULTS = Path(__file__).resolve().parent / "results"
COMPILE_GOALS = {"cold": 1.0, "cached": 0.05}  # seconds of passes, planning and kernels
RECORDING_GOAL = 3.0  # a recorded call / an eager step
MEMORY_ROWS = ("w3", "w8")  # where peak memory has a goal: at most the leanest peer's

Found = dict[str, Any]  # a row's result


# ---- numbers -------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    """Three digits with a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return (
                f"{value / size:.3g} {unit}" if value < 100 * size else f"{value / size:.0f} {unit}"
            )
    return f"{value * 1e9:.0f} ns"


def count(value: float) -> str:
    """A number of steps, to two digits: it comes from a compile time, which varies."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 1 else "1"


def with_spread(spread: Found, ops: int) -> str:
    width = Spread(**spread).width
    return f"{seconds(spread['median'] / ops)} ±{width / 2:.0%}"


def time_of(found: Found, peer: str) -> str:
    """A peer's median for a row, or why there is none."""
    measured = found["peers"].get(peer)
    if measured is None or measured["absent"]:
        return ""
    if measured["seconds"] is None:
        return "failed" if measured["problem"] else ""
    return with_spread(measured["seconds"], found["ops"])


def ratio_of(versus: Found | None) -> str:
    """Ours / theirs; where noise forbids a number, `faster` or `slower` if that much is sure."""
    if versus is None:
        return ""
    if versus["ratio"] is None:
        return versus["direction"] or "within noise"
    return f"{versus['ratio']['median']:.2f}"


def times(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:.2g}x"


def speed_up_of(versus: Found | None) -> str:
    """Eager over static: how many times faster."""
    if versus is None or versus["ratio"] is None:
        return ratio_of(versus)
    return times(1 / versus["ratio"]["median"])


def break_even_of(versus: Found | None, kind: str = "cold") -> str:
    """Steps until compiling has paid; `never` if static is slower; empty if within noise."""
    if versus is None or versus["direction"] is None or kind not in versus["break_even_steps"]:
        return ""
    steps = versus["break_even_steps"][kind]
    return "never" if steps is None else count(steps)


def first_calls_of(found: Found, peer: str, kind: str = "cold") -> str:
    """What the first calls cost beyond steady ones."""
    measured = found["peers"].get(peer)
    value = measured and measured["compile_seconds"].get(kind)
    return "" if value is None else seconds(value)


def compile_of(found: Found, peer: str, kind: str = "cold") -> str:
    """What the library itself counts as compiling; files of older versions do not say."""
    value = found["peers"].get(peer, {}).get("own_compile_seconds", {}).get(kind)
    return "" if value is None else seconds(value)


def recording_of(found: Found, peer: str) -> float | None:
    """A recorded call over an eager step."""
    details = found["peers"].get(peer, {}).get("details", {})
    return details.get("info", {}).get("recording")


def detail(found: Found, peer: str, name: str) -> float | None:
    return found["peers"].get(peer, {}).get("details", {}).get(name)


def ratio_to_eager(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def goal_of(versus: Found | None) -> str:
    return "" if versus is None or versus["goal"] is None else f"{versus['goal']:g}"


def verdict_of(versus: Found | None) -> str:
    return "" if versus is None else versus["verdict"]


def problem_of(found: Found, *peers: str) -> str:
    """The first line of what is wrong, or absent, with one of these peers."""
    for peer in peers:
        measured = found["peers"].get(peer, {})
        reason = measured.get("problem") or measured.get("absent")
        if reason:
            return f"{peer}: {reason.splitlines()[0]}"
    return ""


# ---- tables --------------------------------------------------------------------------------------

Column = tuple[str, Callable[[Found], str]]


def eager_columns() -> list[Column]:
    return [
        ("row", lambda r: r["row"]),
        ("workload", lambda r: r["what"]),
        ("torch eager", lambda r: time_of(r, "torch eager")),
        ("gpugrad eager", lambda r: time_of(r, "gpugrad eager")),
        ("ratio", lambda r: ratio_of(r["eager"])),
        ("goal", lambda r: goal_of(r["eager"])),
        ("verdict", lambda r: verdict_of(r["eager"]) or problem_of(r, "gpugrad eager")),
        ("faults", lambda r: whole(detail(r, "gpugrad eager", "page_faults_per_step"))),
    ]


def static_columns() -> list[Column]:
    ours = "gpugrad static"

    def rival(r: Found) -> str:
        return r["static"]["their_name"] if r["static"] else (r.get("best_rival") or "")

    def pays(r: Found) -> Found | None:
        return r["static_pays"].get("gpugrad")

    return [
        ("row", lambda r: r["row"]),
        ("best peer", lambda r: f"{rival(r)}  {time_of(r, rival(r))}"),
        (ours, lambda r: time_of(r, ours)),
        ("ratio", lambda r: ratio_of(r["static"])),
        ("goal", lambda r: goal_of(r["static"])),
        ("verdict", lambda r: verdict_of(r["static"]) or problem_of(r, ours)),
        ("over eager", lambda r: speed_up_of(pays(r))),
        ("compile", lambda r: compile_of(r, ours)),
        ("cached", lambda r: compile_of(r, ours, "cached")),
        ("recording", lambda r: ratio_to_eager(recording_of(r, ours))),
        ("first calls", lambda r: first_calls_of(r, ours)),
        ("repaid after", lambda r: break_even_of(pays(r))),
        ("faults", lambda r: whole(detail(r, ours, "page_faults_per_step"))),
    ]


def peer_columns(results: list[Found]) -> list[Column]:
    measured = [p for p in PEERS if any(r["peers"].get(p, {}).get("seconds") for r in results)]

    def column(peer: str) -> Column:
        return peer, lambda r: time_of(r, peer)

    return [("row", lambda r: r["row"]), *(column(peer) for peer in measured)]


def compile_columns(results: list[Found]) -> list[Column]:
    """What the first calls of each peer that compiles cost: cold, and from its cache."""

    def column(peer: str) -> Column:
        def cell(r: Found) -> str:
            found = (first_calls_of(r, peer, kind) for kind in ("cold", "cached"))
            return " / ".join(filter(None, found))

        return peer, cell

    ran = [p for p in PEERS if any(r["peers"].get(p, {}).get("seconds") for r in results)]
    return [
        ("row", lambda r: r["row"]),
        *(column(peer) for peer in ran if PEERS[peer].static),
    ]


def memory_columns(results: list[Found]) -> list[Column]:
    """Peak memory in MB and page faults of a steady step."""

    def column(peer: str) -> Column:
        def cell(r: Found) -> str:
            peak = whole(detail(r, peer, "peak_megabytes"))
            faults = whole(detail(r, peer, "page_faults_per_step"))
            return f"{peak} MB, {faults}" if peak else ""

        return peer, cell

    ran = [p for p in PEERS if any(r["peers"].get(p, {}).get("seconds") for r in results)]
    return [("row", lambda r: r["row"]), *(column(peer) for peer in ran)]


COLOURS = {"met": "green", "missed": "red", "unclear": "yellow"}


def table(title: str, columns: list[Column], results: list[Found]) -> Any:
    """For the terminal; a machine that others used meanwhile is said beside the verdict."""
    from rich.table import Table

    found = Table(title=title, title_justify="left")
    for name, _ in columns:
        left = name in ("workload", "verdict", "row", "best peer")
        found.add_column(name, justify="left" if left else "right", no_wrap=name != "verdict")
    for result in results:
        cells = []
        for name, cell in columns:
            text = cell(result)
            if name == "verdict":
                colour = COLOURS.get(text)
                text = f"[{colour}]{text}[/{colour}]" if colour else text
                if (result["used_by_others"] or 0) > BUSY:
                    text += f" [yellow](others used {result['used_by_others']:.1f} cores)[/yellow]"
            cells.append(text)
        found.add_row(*cells)
    return found


def markdown_table(columns: list[Column], results: list[Found]) -> str:
    lines = [
        f"| {' | '.join(name for name, _ in columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(cell(result) for _, cell in columns)} |" for result in results),
    ]
    return "\n".join(lines)


# ---- judgements ----------------------------------------------------------------------------------


def summary(results: list[Found], mode: str) -> str:
    """Which goals of `eager` or `static` are met, missed, unclear or not measured."""
    groups: dict[str, list[str]] = {}
    for result in results:
        verdict = verdict_of(result[mode]) if result[mode] else "not measured"
        groups.setdefault(verdict or "no goal", []).append(result["row"])
    return "\n".join(f"{mode} {verdict}: {' '.join(rows)}" for verdict, rows in groups.items())


def at_most(
    what: str,
    values: dict[str, float | None],
    form: Callable[[float], str],
    goal: float | None = None,
) -> list[str]:
    """A line with the largest of the rows' values, and which are beyond a goal."""
    known = {row: value for row, value in values.items() if value is not None}
    if not known:
        return []
    worst = max(known, key=lambda row: known[row])
    line = f"{what}: at most {form(known[worst])} ({worst})"
    if goal is not None:
        over = [row for row, value in known.items() if value > goal]
        line += f", goal {form(goal)}: {'missed by ' + ' '.join(over) if over else 'met'}"
    return [line]


def beside_speed(results: list[Found]) -> list[str]:
    """The goals of static mode that are no ratios of times."""
    ours = "gpugrad static"
    measured = [r for r in results if r["peers"].get(ours, {}).get("seconds")]
    if not measured:
        return []
    lines = []
    for kind, goal in COMPILE_GOALS.items():
        own = {
            r["row"]: r["peers"][ours].get("own_compile_seconds", {}).get(kind) for r in measured
        }
        lines += at_most(f"compile, {kind}", own, seconds, goal)
    recording = {r["row"]: recording_of(r, ours) for r in measured}
    lines += at_most("a recorded call, in eager steps", recording, ratio_to_eager, RECORDING_GOAL)
    for kind in COMPILE_GOALS:
        first = {r["row"]: r["peers"][ours]["compile_seconds"].get(kind) for r in measured}
        lines += at_most(f"first calls beyond steady ones, {kind}", first, seconds)
    faulty = [r["row"] for r in measured if (detail(r, ours, "page_faults_per_step") or 0) >= 1]
    lines.append(f"page faults in a steady step: {'in ' + ' '.join(faulty) if faulty else 'none'}")
    for r in measured:
        rivals = {
            name: detail(r, name, "peak_megabytes")
            for name, peer in PEERS.items()
            if peer.library not in ("gpugrad", "numpy")
        }
        known = {name: value for name, value in rivals.items() if value is not None}
        peak = detail(r, ours, "peak_megabytes")
        if r["row"] in MEMORY_ROWS and known and peak is not None:
            lean = min(known, key=lambda name: known[name])
            lines.append(
                f"peak memory of {r['row']}: {peak:.0f} MB, the leanest peer ({lean}) "
                f"{known[lean]:.0f} MB: {'met' if peak <= known[lean] else 'missed'}"
            )
    return lines


def problems(results: list[Found]) -> list[tuple[str, str, str]]:
    """(row, peer, what went wrong) of everything that could not be measured."""
    return [
        (result["row"], peer, measured["problem"])
        for result in results
        for peer, measured in result["peers"].items()
        if measured["problem"]
    ]


# ---- files ---------------------------------------------------------------------------------------


def write(name: str | None, content: Found) -> Path:
    """All figures as JSON. Without a name the file is a local one, which git ignores."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name or time.strftime('local-%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read(name: str) -> Found:
    """results/NAME.json as `write` wrote it; ValueError for an older one."""
    content = json.loads((RESULTS / f"{name.removesuffix('.json')}.json").read_text())
    if not all("peers" in result for result in content.get("results", [{}])):
        raise ValueError(f"{name}.json is not of this version of the benchmarks: measure anew")
    return content


def conditions(environment: Found) -> str:
    versions = ", ".join(f"{key} {value}" for key, value in environment["versions"].items())
    return (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads; "
        f"Python {environment['python']}, {versions}; commit {environment['commit']}."
    )


def markdown(name: str) -> str:
    """The README's tables, from a result file."""
    content = read(name)
    results = content["results"]
    parts = [conditions(content["environment"]), markdown_table(eager_columns()[:-1], results)]
    if any(result["static"] for result in results):
        parts.append(markdown_table(static_columns()[:-1], results))
    return "\n\n".join(parts)
