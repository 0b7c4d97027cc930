"""One self-contained HTML page that answers: when does static pay, and by how much?"""

from __future__ import annotations

import statistics
from html import escape
from itertools import pairwise

from benchmarks.report import (
    Column,
    Found,
    beside_speed,
    compile_columns,
    conditions,
    count,
    eager_columns,
    memory_columns,
    peer_columns,
    problems,
    seconds,
    static_columns,
    times,
)

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p.note, figcaption, footer { color: #5b6472; font-size: .88rem; }
.answer { background: #f1f5fd; border-left: 4px solid #1d5bd6; padding: .8rem 1.2rem .8rem 2.2rem; }
.answer li { margin: .25rem 0; }
figure { margin: .6rem 0 0; } svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e5e7eb; }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #9aa3b0; }
th:first-child, td:first-child, .text { text-align: left; }
td.workload, td.verdict { white-space: normal; }
.met { color: #14783f; font-weight: 600; } .missed { color: #b42318; font-weight: 600; }
.unclear { color: #8a6100; }
"""

TEXT = ("workload", "best peer")  # columns that are read, not compared
WORK_BOUNDS = (0.0, 10e-6, 100e-6, float("inf"))  # seconds per operation


# ---- the answer ----------------------------------------------------------------------------------


def pays_by_row(results: list[Found], library: str) -> dict[str, float]:
    """Eager over static of the rows where it is more than noise."""
    return {
        r["row"]: 1 / r["static_pays"][library]["ratio"]["median"]
        for r in results
        if r["static_pays"].get(library, {}).get("ratio")
    }


def bounds(values: list[float]) -> str:
    low, high = times(min(values)), times(max(values))
    return low if low == high else f"{low} to {high}"


def names(rows: list[str]) -> str:
    return ", ".join(rows)


def by_how_much(results: list[Found], library: str) -> list[str]:
    """A sentence on where a library's static mode is faster than its eager one."""
    direction = {
        r["row"]: r["static_pays"][library]["direction"]
        for r in results
        if library in r["static_pays"]
    }
    if not direction:
        return []
    groups = {
        kind: [row for row, d in direction.items() if d == kind]
        for kind in ("faster", "slower", None)
    }
    line = f"{library}: static is faster than eager in {len(groups['faster'])} of {len(direction)}"
    line += " rows"
    gains = [x for row, x in pays_by_row(results, library).items() if row in groups["faster"]]
    if gains:
        line += f", by {bounds(gains)} (median {times(statistics.median(gains))})"
    if groups["slower"]:
        line += f"; slower in {names(groups['slower'])}"
    if groups[None]:
        line += f"; within noise in {names(groups[None])}"
    return [line + "."]


def by_work(results: list[Found], library: str) -> list[str]:
    """A sentence for each size of work per operation."""
    from benchmarks.plots import work_per_op

    ratios = pays_by_row(results, library)
    lines = []
    for low, high in pairwise(WORK_BOUNDS):
        inside = {
            r["row"]: ratios[r["row"]]
            for r in results
            if r["row"] in ratios and low <= (work_per_op(r) or -1) < high
        }
        if not inside:
            continue
        if high == WORK_BOUNDS[-1]:
            what = f"at least {seconds(low)}"
        else:
            what = f"{seconds(low)} to {seconds(high)}" if low else f"less than {seconds(high)}"
        lines.append(
            f"Rows with {what} of work per operation ({names(list(inside))}): "
            f"{bounds(list(inside.values()))}."
        )
    return lines


def repaid(results: list[Found], library: str) -> list[str]:
    """When the compile time has come back."""
    lines = []
    for kind, what in (("cold", "With nothing cached"), ("cached", "From the cache")):
        steps = {
            r["row"]: versus["break_even_steps"][kind]
            for r in results
            if (versus := r["static_pays"].get(library))
            and versus["direction"]
            and versus["break_even_steps"].get(kind) is not None
        }
        if steps:
            last = max(steps, key=lambda row: steps[row])
            lines.append(
                f"{what}, compiling is repaid after {count(statistics.median(steps.values()))} "
                f"steps in the median row and {count(steps[last])} at most ({last})."
            )
    return lines


def against_peers(results: list[Found]) -> list[str]:
    judged = [r for r in results if r["static"]]
    if not judged:
        return []
    ahead = [r["row"] for r in judged if r["static"]["direction"] == "faster"]
    met = [r["row"] for r in judged if r["static"]["verdict"] == "met"]
    line = f"Beside the best peer of each row, gpugrad static is ahead in {len(ahead)} of "
    line += f"{len(judged)} rows and meets the goal in {len(met)}"
    return [line + (f" ({names(met)})." if met else ".")]


def answer(results: list[Found]) -> list[str]:
    """The page's first lines."""
    if any("gpugrad" in r["static_pays"] for r in results):
        lines = by_how_much(results, "gpugrad") + by_work(results, "gpugrad")
        return lines + repaid(results, "gpugrad") + against_peers(results) + beside_speed(results)
    lines = ["gpugrad's static mode was not measured; this is what static does for others."]
    for library in ("torch", "torch, loss only", "tf function", "tf xla"):
        lines += by_how_much(results, library)
    return lines + repaid(results, "torch")


# ---- the page ------------------------------------------------------------------------------------


def cell(name: str, text: str) -> str:
    kind = text if text in ("met", "missed", "unclear") else name if name == "workload" else ""
    kind = " ".join(filter(None, (kind, "text" if name in TEXT else "")))
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def html_table(columns: list[Column], results: list[Found]) -> str:
    head = "".join(
        f'<th class="text">{name}</th>' if name in TEXT else f"<th>{escape(name)}</th>"
        for name, _ in columns
    )
    body = "\n".join(
        "<tr>" + "".join(cell(name, of(result)) for name, of in columns) + "</tr>"
        for result in results
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def figures(results: list[Found], sweep: list[Found]) -> list[tuple[str, str, str]]:
    """(title, svg, caption) of each plot; none without matplotlib."""
    try:
        from benchmarks import plots
    except ImportError:
        return []
    found = []
    if any(r["static_pays"] for r in results):
        found.append((
            "Speed-up against the work in one operation",
            plots.drawn("work", plots.speed_up_by_work, results),
            "Each point is a row; above 1x static is faster. Operations are those that torch "
            "dispatches in an eager step. Bars: too noisy for a number, the quartiles' range.",
        ))  # fmt: skip
    if sweep:
        found.append((
            "The same program, larger and larger",
            plots.drawn("sweep", plots.sweep, sweep),
            "Solid lines are static, dashed ones eager; the numbers say how many times faster "
            "gpugrad is static than eager. Where they come together the arrays, not the calls, "
            "take the time.",
        ))  # fmt: skip
    if any(r["static_pays"] for r in results):
        found.append((
            "How many steps repay the compile time",
            plots.drawn("repaid", plots.break_even, results),
            "Compile time / (eager step - static step). No point: never, or within noise.",
        ))  # fmt: skip
    if results:
        found.append((
            "All peers",
            plots.drawn("peers", plots.all_peers, results),
            "Filled markers run compiled steps, hollow ones eager steps.",
        ))  # fmt: skip
        found.append((
            "First calls",
            plots.drawn("compile", plots.compile_times, results),
            "What the first five calls cost beyond five steady ones, recording included.",
        ))  # fmt: skip
    return found


def import_line(imports: dict[str, list[float]]) -> str:
    medians = {module: statistics.median(times) for module, times in imports.items()}
    return ", ".join(f"{module} {seconds(value)}" for module, value in medians.items())


def legend(results: list[Found]) -> list[str]:
    """What the rows' names stand for."""
    return [f"{result['row']}: {result['what']}" for result in results]


def page(content: Found) -> str:
    """The whole page for a result file's content."""
    environment, results = content["environment"], content["results"]
    sweep, near = content.get("sweep", []), content.get("near", [])
    parts = [
        "<h1>When does static pay, and by how much?</h1>",
        f'<p class="note">{escape(conditions(environment))}</p>',
    ]
    if results:
        lines = "".join(f"<li>{escape(line)}</li>" for line in answer(results))
        parts.append(f'<ul class="answer">{lines}</ul>')
        parts.append(f'<p class="note">{escape("; ".join(legend(results)))}.</p>')
    drawings = figures(results, sweep)
    if not drawings and results + sweep:
        parts.append('<p class="note">No plots: matplotlib is not installed.</p>')
    for title, svg, caption in drawings:
        parts.append(
            f"<h2>{escape(title)}</h2><figure>{svg}<figcaption>{escape(caption)}</figcaption>"
            "</figure>"
        )
    for title, rows in (("", results), (" at shapes nearby", near)):
        if rows:
            parts.append(f"<h2>Static{title}: gpugrad beside the best peer</h2>")
            parts.append(html_table(static_columns(), rows))
            parts.append(f"<h2>Eager{title}: gpugrad beside torch</h2>")
            parts.append(html_table(eager_columns(), rows))
    for title, columns in (
        ("Every peer: time of a step", peer_columns),
        ("First calls, beyond steady ones: cold / from the cache", compile_columns),
        ("Peak memory, and page faults of a steady step", memory_columns),
    ):
        if results:
            parts.append(f"<h2>{title}</h2>{html_table(columns(results + sweep), results + sweep)}")
    if content["import_seconds"]:
        parts.append(f"<h2>Import</h2><p>{escape(import_line(content['import_seconds']))}</p>")
    failed = problems(results + sweep + near)
    if failed:
        items = "".join(
            f"<li>{escape(row)}, {escape(peer)}: {escape(problem.splitlines()[0])}</li>"
            for row, peer, problem in failed
        )
        parts.append(f"<h2>Not measured</h2><ul>{items}</ul>")
    parts.append(
        "<footer><p>Each (row, peer) ran in a process of its own; losses of the first ten steps "
        "and gradients agreed within 1e-4 before anything was timed; peers were measured in "
        "turns. Times are medians ± half the interquartile range. A ratio stands only where the "
        "quartiles lie apart and the rounds agree. benchmarks/README.md has the rest.</p></footer>"
    )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>gpugrad: when does static pay?</title><style>{STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )
