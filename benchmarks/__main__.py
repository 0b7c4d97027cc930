"""The rows of the speed table beside torch, one op at a time, and the time of an import."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys

from benchmarks.environment import describe
from benchmarks.runner import Plan, Result, import_times, measure
from benchmarks.workloads import OVERHEAD, ROWS

IMPORT_GOAL = 1.5  # times `import numpy`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, also those of ``gpugrad bench``."""
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help=f"some of {', '.join(ROWS)} (w4 means both batches)",
    )
    parser.add_argument("--only", choices=("rows", "ops", "imports"), help="one of the three parts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--save", metavar="NAME", help="write results/NAME.json instead of a local file"
    )
    parser.add_argument(
        "--profile",
        metavar="ROW",
        help="where the time of this row goes in gpugrad; measures nothing",
    )
    parser.add_argument(
        "--markdown", metavar="NAME", help="print results/NAME.json as the README's table"
    )


def chosen(names: list[str] | None) -> list[str]:
    if not names:
        return list(ROWS)
    found = [row for row in ROWS for name in names if row == name or row.startswith(name + "/")]
    unknown = [
        name for name in names if not any(row == name or row.startswith(name + "/") for row in ROWS)
    ]
    if unknown:
        raise SystemExit(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return found


def profile(name: str, threads: int, seed: int) -> None:
    """cProfile of two seconds of steps."""
    import cProfile
    import pstats
    import time

    import gpugrad

    if hasattr(gpugrad, "set_num_threads"):
        gpugrad.set_num_threads(threads)
    step, _ = {**ROWS, **OVERHEAD}[name].build(gpugrad, seed)
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


def run_table(title: str, names: list[str], plan: Plan) -> list[Result]:
    from rich.console import Console
    from rich.progress import Progress

    from benchmarks.report import table

    console, results = Console(), []
    if not console.is_terminal:
        console = Console(width=140)  # into a file or a log: the whole table
    rows = {**ROWS, **OVERHEAD}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=len(names))
        for name in names:
            progress.update(task, description=f"{title}: {name}")
            results.append(measure(name, rows[name].goal, plan))
            progress.advance(task)
    console.print(
        table(f"{title}, {plan.threads} threads: median ± half the interquartile range", results)
    )
    return results


def run_imports(rounds: int) -> dict[str, list[float]]:
    found = import_times(("numpy", "gpugrad", "torch"), rounds)
    medians = {module: statistics.median(times) for module, times in found.items()}
    ratio = statistics.median(ours / numpy for ours, numpy in zip(found["gpugrad"], found["numpy"]))
    print(
        "import: "
        + ", ".join(f"{module} {1e3 * value:.0f} ms" for module, value in medians.items())
    )
    verdict = "met" if ratio <= IMPORT_GOAL else "missed"
    print(f"import gpugrad / import numpy: {ratio:.2f}, goal {IMPORT_GOAL}: {verdict}\n")
    return found


def main(options: argparse.Namespace) -> int:
    if options.markdown:
        from benchmarks.report import markdown

        print(markdown(options.markdown))
        return 0
    if options.profile:
        profile(options.profile, options.threads, options.seed)
        return 0
    missing = [
        name
        for name in ("torch", "rich", "threadpoolctl")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SystemExit(
            f'{", ".join(missing)} not installed: make bench, or pip install "gpugrad[bench]"'
        )
    from benchmarks.report import summary, write

    names = chosen(options.rows)
    plan = Plan(options.threads, options.seed, *((5, 0.06) if options.quick else (9, 0.12)))
    parts = (
        [options.only] if options.only else ["rows"] if options.rows else ["imports", "ops", "rows"]
    )
    environment = describe(plan.threads)
    print(f"{environment['cpu']}, {environment['cores']} cores; {environment['versions']}\n")
    imports = run_imports(3 if options.quick else 9) if "imports" in parts else {}
    ops = run_table("one op", list(OVERHEAD), plan) if "ops" in parts else []
    results = run_table("training steps", names, plan) if "rows" in parts else []
    if results:
        print(summary(results))
    print(f"written: {write(options.save, environment, results + ops, imports)}")
    wrong = [result for result in results + ops if result.problem]
    for result in wrong:
        print(f"\n{result.row}: {result.problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    command = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_arguments(command)
    sys.exit(main(command.parse_args()))
