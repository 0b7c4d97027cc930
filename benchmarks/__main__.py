"""gpugrad, eager and static, beside NumPy by hand, torch, JAX and TensorFlow, where installed."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import describe
from benchmarks.peers import PEERS, Peer
from benchmarks.runner import Plan, import_times, measure
from benchmarks.workloads import EVERY, NEAR, OVERHEAD, ROWS, SWEEP, Row

IMPORT_GOAL = 1.5  # times `import numpy`
PARTS = ("imports", "ops", "rows", "sweep", "near")
SWEEP_PEERS = ("gpugrad eager", "gpugrad static", "torch eager", "torch compile", "jax jit")
OPS_PEERS = ("gpugrad eager", "torch eager")  # nobody compiles a single small op


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, also those of ``gpugrad bench``."""
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help=f"some of {', '.join(ROWS)} (w4 means both batches)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        metavar="PEER",
        help=f"some of {', '.join(PEERS)} (torch means all its modes); default: all installed",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        help="some of the parts; all but `near`, the rows at shapes nearby, are the default",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--save", metavar="NAME", help="write results/NAME.json and .html instead of local files"
    )
    parser.add_argument(
        "--profile",
        metavar="ROW",
        help="where the time of this row goes in gpugrad; measures nothing",
    )
    parser.add_argument(
        "--report", metavar="NAME", help="show results/NAME.json again and write its HTML page"
    )
    parser.add_argument(
        "--markdown", metavar="NAME", help="print results/NAME.json as the README's tables"
    )


def chosen(names: list[str] | None, rows: dict[str, Row]) -> list[Row]:
    """The rows of these names, or all; `w4` stands for `w4/8` and `w4/64`."""
    if not names:
        return list(rows.values())
    return [row for row in rows.values() if any(is_part(row.name, name) for name in names)]


def is_part(row: str, name: str) -> bool:
    """Also of a row nearby: `w4/8~1` is a part of `w4/8` and of `w4`."""
    return row == name or row.startswith((name + "/", name + "~"))


def chosen_rows(names: list[str] | None) -> list[Row]:
    """Those of the table, and any others that are named in full."""
    return chosen(names, ROWS) + [
        row for row in EVERY.values() if row.name not in ROWS and row.name in (names or ())
    ]


def refuse_unknown(names: list[str]) -> None:
    unknown = [name for name in names if not chosen([name], EVERY)]
    if unknown:
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are {', '.join(EVERY)}")


def chosen_peers(names: list[str] | None) -> tuple[Peer, ...]:
    """Those asked for, which must be installed, or all that are."""
    if not names:
        return tuple(peer for peer in PEERS.values() if peer.installed)
    found = {
        peer.name: peer
        for name in names
        for peer in PEERS.values()
        if name in (peer.name, peer.library, peer.name.split()[0])
    }
    matched = {part for peer in found.values() for part in (peer.name, peer.library)}
    unknown = [name for name in names if name not in matched | {n.split()[0] for n in found}]
    if unknown:
        raise SystemExit(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    missing = {peer.library for peer in found.values() if not peer.installed}
    if missing:
        raise SystemExit(f"{', '.join(sorted(missing))} not installed")
    return tuple(peer for peer in PEERS.values() if peer.name in found)


def profile(name: str, threads: int, seed: int) -> None:
    """cProfile of two seconds of steps."""
    import cProfile
    import pstats
    import time

    import gpugrad

    gpugrad.set_num_threads(threads)
    step, _ = EVERY[name].build(gpugrad, seed)
    for _ in range(10):
        step()
    profiler = cProfile.Profile()
    steps, end = 0, time.perf_counter() + 2
    profiler.enable()
    while time.perf_counter() < end:
        step()
        steps += 1
    profiler.disable()
    print(f"{steps} steps")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


# ---- parts ---------------------------------------------------------------------------------------


def wide_console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)  # into a log: whole tables


def run_rows(title: str, rows: list[Row], plan: Plan) -> list[dict[str, Any]]:
    from rich.progress import Progress

    results = []
    with Progress(console=wide_console(), transient=True) as progress:
        task = progress.add_task(title, total=len(rows))
        for row in rows:
            progress.update(task, description=f"{title}: {row.name}")
            results.append(measure(row, plan).as_dict())
            progress.advance(task)
    return results


def run_imports(libraries: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each import: gpugrad, what it needs, and the peers."""
    modules = dict.fromkeys(["numpy", "gpugrad", *libraries])
    return import_times(tuple(modules), rounds)


def import_verdict(found: dict[str, list[float]]) -> str:
    from benchmarks.page import import_line

    ratio = statistics.median(ours / numpy for ours, numpy in zip(found["gpugrad"], found["numpy"]))
    verdict = "met" if ratio <= IMPORT_GOAL else "missed"
    return (
        f"import: {import_line(found)}\n"
        f"import gpugrad / import numpy: {ratio:.2f}, goal {IMPORT_GOAL}: {verdict}\n"
    )


def show(content: dict[str, Any]) -> None:
    """All tables of a result file in the terminal."""
    from benchmarks import report

    console = wide_console()
    spread = f"threads: {content['environment']['threads']}; median ± half the interquartile range"
    if content["import_seconds"]:
        console.print(import_verdict(content["import_seconds"]), highlight=False)
    if content["ops"]:
        title = f"one op, eager beside torch ({spread})"
        console.print(report.table(title, report.eager_columns(), content["ops"]))
    for key, title in (("results", "rows"), ("near", "shapes nearby"), ("sweep", "growing sizes")):
        results = content[key]
        asked = {peer for result in results for peer in result["peers"]}
        tables = []
        if key != "sweep" and "gpugrad eager" in asked:
            tables.append((f"eager beside torch ({spread})", report.eager_columns()))
        if "gpugrad static" in asked:
            tables.append((f"static beside the best peer ({spread})", report.static_columns()))
        tables.append((f"every peer ({spread})", report.peer_columns(results)))
        if key != "sweep":
            columns = report.compile_columns(results)
            tables.append(("first calls, beyond steady ones: cold / from the cache", columns))
        for what, columns in tables:
            if results and len(columns) > 1:
                console.print(report.table(f"{title}: {what}", columns, results))
    for line in conclusions(content["results"]):
        console.print(line, highlight=False)


def conclusions(results: list[dict[str, Any]]) -> list[str]:
    from benchmarks import report
    from benchmarks.page import answer

    if not results:
        return []
    modes = [mode for mode in ("eager", "static") if any(r[mode] for r in results)]
    judged = [report.summary(results, mode) for mode in modes]
    return ["", *answer(results), "", *judged]


def run(options: argparse.Namespace) -> dict[str, Any]:
    peers = chosen_peers(options.peers)
    parts = options.only or (["rows"] if options.rows else [p for p in PARTS if p != "near"])
    timing = (5, 0.06) if options.quick else (9, 0.12)

    def plan(names: tuple[str, ...] = tuple(PEERS)) -> Plan:
        able = tuple(peer for peer in peers if peer.name in names)
        return Plan(able, options.threads, options.seed, *timing)

    content: dict[str, Any] = {"environment": describe(options.threads), "import_seconds": {}}
    content |= {"ops": [], "results": [], "sweep": [], "near": []}
    if "imports" in parts:
        libraries = [peer.library for peer in peers]
        content["import_seconds"] = run_imports(libraries, 3 if options.quick else 9)
    if "ops" in parts:
        content["ops"] = run_rows("one op", list(OVERHEAD.values()), plan(OPS_PEERS))
    if "rows" in parts:
        content["results"] = run_rows("training steps", chosen_rows(options.rows), plan())
    if "sweep" in parts:
        content["sweep"] = run_rows("sizes", chosen(options.rows, SWEEP), plan(SWEEP_PEERS))
    if "near" in parts:
        content["near"] = run_rows("shapes nearby", chosen(options.rows, NEAR), plan())
    return content


def write_page(path: Path, content: dict[str, Any]) -> Path:
    from benchmarks.page import page

    target = path.with_suffix(".html")
    target.write_text(page(content), encoding="utf-8")
    return target


def main(options: argparse.Namespace) -> int:
    refuse_unknown(options.rows or [])
    if options.profile:
        refuse_unknown([options.profile])
        profile(options.profile, options.threads, options.seed)
        return 0
    if importlib.util.find_spec("rich") is None:
        raise SystemExit('rich is not installed: make bench, or pip install "gpugrad[bench]"')
    from benchmarks import report

    try:
        if options.markdown:
            print(report.markdown(options.markdown))
            return 0
        if options.report:
            content = report.read(options.report)
            path = report.RESULTS / f"{options.report}.json"
        else:
            content = run(options)
            path = report.write(options.save, content)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(report.conditions(content["environment"]) + "\n")
    show(content)
    print(f"\nwritten: {path} and {write_page(path, content).name}")
    failed = [
        problem
        for part in ("ops", "results", "sweep", "near")
        for problem in report.problems(content[part])
    ]
    for row, peer, problem in failed:
        print(f"\n{row}, {peer}: {problem}", file=sys.stderr)
    return 1 if any(peer.startswith("gpugrad") for _, peer, _ in failed) else 0


if __name__ == "__main__":
    command = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_arguments(command)
    sys.exit(main(command.parse_args()))
