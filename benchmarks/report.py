"""The table and the JSON file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.runner import Result
from benchmarks.statistics import BUSY, Spread
from benchmarks.workloads import OVERHEAD, ROWS, Row

RESULTS = Path(__file__).resolve().parent / "results"


def seconds(value: float) -> str:
    """Three digits with a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return (
                f"{value / size:.3g} {unit}" if value < 100 * size else f"{value / size:.0f} {unit}"
            )
    return f"{value * 1e9:.0f} ns"


def with_spread(spread: Spread, ops: int) -> str:
    return f"{seconds(spread.median / ops)} ±{spread.width / 2:.0%}"


def row_of(name: str) -> Row:
    return ROWS.get(name) or OVERHEAD[name]


def table_row(result: Result) -> list[str]:
    row = row_of(result.row)
    goal = "" if row.goal is None else f"{row.goal:g}"
    if result.comparison is None:
        problem = (result.problem or "not measured").splitlines()[0]
        return [result.row, row.what, "", "", "", goal, f"[red]{problem}[/red]"]
    comparison = result.comparison
    ratio = f"{comparison.ratio.median:.2f}" if comparison.distinct else "within noise"
    colour = {"met": "green", "missed": "red"}.get(comparison.verdict, "yellow")
    verdict = f"[{colour}]{comparison.verdict}[/{colour}]" if comparison.verdict else ""
    if result.busy is not None and result.busy > BUSY:
        verdict += f" [yellow](others used {result.busy:.1f} cores)[/yellow]"
    theirs, ours = with_spread(comparison.theirs, row.ops), with_spread(comparison.ours, row.ops)
    faults = result.details[result.library].get("page_faults_per_step")
    return [
        result.row,
        row.what,
        theirs,
        ours,
        ratio,
        goal,
        verdict,
        "" if faults is None else f"{faults:.0f}",
    ]


def table(title: str, results: list[Result]) -> Any:
    from rich.table import Table

    found = Table(title=title, title_justify="left")
    found.add_column("row", no_wrap=True)
    found.add_column("workload")
    for name in ("torch eager", "gpugrad eager", "ratio", "goal"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("verdict")
    found.add_column("page faults", justify="right")
    for result in results:
        found.add_row(*table_row(result))
    return found


def summary(results: list[Result]) -> str:
    """Which goals are met, missed, unclear or not measured, in one line each."""
    groups: dict[str, list[str]] = {}
    for result in results:
        verdict = result.comparison.verdict if result.comparison else "not measured"
        groups.setdefault(verdict or "no goal", []).append(result.row)
    return "\n".join(f"{verdict}: {' '.join(rows)}" for verdict, rows in groups.items())


def write(
    name: str | None, environment: dict, results: list[Result], imports: dict[str, list[float]]
) -> Path:
    """All figures as JSON. Without a name the file is a local one, which git ignores."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name or time.strftime('local-%Y%m%d-%H%M%S')}.json"
    content = {
        "environment": environment,
        "import_seconds": imports,
        "results": [result.as_dict() for result in results],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def markdown(name: str) -> str:
    """The README's table, from a result file."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    environment = content["environment"]
    versions = ", ".join(f"{key} {value}" for key, value in environment["versions"].items())
    lines = [
        f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads; "
        f"Python {environment['python']}, {versions}; commit {environment['commit']}.",
        "",
        "| row | workload | torch eager | gpugrad eager | ratio | goal | |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in content["results"]:
        row, found = row_of(result["row"]), result["comparison"]
        if found is None:
            lines.append(f"| {row.name} | {row.what} | | | | | not measured |")
            continue
        theirs, ours = (seconds(found[key]["median"] / row.ops) for key in ("theirs", "ours"))
        ratio = f"{found['ratio']['median']:.2f}" if found["ratio"] else "within noise"
        goal = "" if row.goal is None else f"{row.goal:g}"
        cells = (row.name, row.what, theirs, ours, ratio, goal, found["verdict"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
