"""Plots of the HTML page, as SVG: matplotlib draws, nothing is shown on a screen."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.peers import PEERS
from benchmarks.report import Found, detail, seconds

COLOURS = {
    "gpugrad": "#1d5bd6", "torch": "#df4b20", "jax": "#14885a", "tensorflow": "#b97a00",
    "numpy": "#6b7280",
}  # fmt: skip
SHAPES = {"torch compile loss": "s", "tf function": "s", "tf xla": "D", "numpy by hand": "X"}
INK, FAINT = "#1f2937", "#d4d8de"

STYLE = {
    "font.family": "sans-serif", "font.size": 10, "svg.fonttype": "path",
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": FAINT,
    "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


class Marker(NamedTuple):
    """How a peer looks everywhere: its library's colour, filled if static."""

    colour: str
    shape: str
    filled: bool

    @classmethod
    def of(cls, peer: str) -> Marker:
        known = PEERS[peer]
        return cls(COLOURS[known.library], SHAPES.get(peer, "o"), known.static)

    def style(self, size: float = 7) -> dict[str, Any]:
        return {
            "marker": self.shape, "color": self.colour, "markersize": size,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgecolor": self.colour, "markeredgewidth": 1.4,
        }  # fmt: skip


# ---- helpers -------------------------------------------------------------------------------------


def drawn(name: str, draw: Callable[..., Figure], *arguments: Any) -> str:
    """A figure as an `<svg>` element; its ids begin with its name, as a page has several."""
    buffer = io.StringIO()
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = draw(*arguments)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def times_label(value: float, _: Any = None) -> str:
    return f"{value:g}x"


def time_label(value: float, _: Any = None) -> str:
    return seconds(value) if value > 0 else ""


def steps_label(value: float, _: Any = None) -> str:
    return f"{value:,.0f}"


def log_axis(axis: Any, label: Callable[..., str], every: tuple[float, ...] = (1.0,)) -> None:
    axis.set_major_locator(LogLocator(10, subs=every))
    axis.set_major_formatter(FuncFormatter(label))
    axis.set_minor_formatter(NullFormatter())


def legend_of_peers(axes: Axes, peers: list[str], **where: Any) -> None:
    handles = [
        Line2D([], [], linestyle="none", label=peer, **Marker.of(peer).style()) for peer in peers
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9, **where)


def rows_down(axes: Axes, names: list[str]) -> None:
    """One line for each row, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def figure_of_rows(count: int, width: float = 9.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 1.3 + 0.32 * max(count, 3)), layout="constrained")
    return figure, figure.add_subplot()


def measured(results: list[Found]) -> list[str]:
    return [p for p in PEERS if any(r["peers"].get(p, {}).get("seconds") for r in results)]


# ---- when static pays ----------------------------------------------------------------------------


def work_per_op(result: Found) -> float | None:
    """Seconds of eager work per operation: gpugrad's time over the ops that torch dispatches."""
    eager = result["peers"].get("gpugrad eager", {}).get("seconds")
    ops = (detail(result, "torch eager", "info") or {}).get("ops")
    return eager["median"] / ops if eager and ops else None


SPEED_UPS = {  # pairs in `static_pays`, and the peer whose marker they have
    "tf xla": "tf xla", "tf function": "tf function", "torch": "torch compile",
    "torch, loss only": "torch compile loss", "gpugrad": "gpugrad static",
}  # fmt: skip


def speed_up_by_work(results: list[Found]) -> Figure:
    """Eager over static of each library, against the work in one operation."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    shown = [name for name in SPEED_UPS if any(name in r["static_pays"] for r in results)]
    labelled = "gpugrad" if "gpugrad" in shown else "torch"
    for result in results:
        work = work_per_op(result)
        for name in shown:
            versus = result["static_pays"].get(name)
            if work is None or versus is None:
                continue
            main = name == labelled
            colour = COLOURS[PEERS[SPEED_UPS[name]].library]
            if versus["ratio"]:
                height = 1 / versus["ratio"]["median"]
                style = Marker.of(SPEED_UPS[name]).style(9 if main else 5)
                axes.plot(work, height, alpha=1 if main else 0.5, zorder=3 if main else 2, **style)
            elif main:  # only a range is known
                eager, static = versus["theirs"], versus["ours"]
                height = eager["high"] / static["low"]
                lowest = eager["low"] / static["high"]
                axes.plot([work, work], [lowest, height], color=colour, linewidth=5, alpha=0.3)
            if main:
                axes.annotate(
                    result["row"], (work, height), xytext=(0, 8), textcoords="offset points",
                    ha="center", fontsize=9, color=colour,
                )  # fmt: skip
    axes.axhline(1, color=INK, linewidth=1)
    axes.set(xscale="log", yscale="log", ylabel="eager time / static time")
    axes.set_xlabel("work per operation: eager time of a step / operations in it")
    log_axis(axes.xaxis, time_label)
    log_axis(axes.yaxis, times_label, (1.0, 2.0, 5.0))
    peers = [SPEED_UPS[name] for name in reversed(shown)]
    legend_of_peers(axes, peers, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sweep(results: list[Found]) -> Figure:
    """A program at growing sizes: one panel for each, a line for each peer."""
    programs: dict[str, list[Found]] = {}
    for result in results:
        programs.setdefault(result["row"].split("/")[0], []).append(result)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(programs), squeeze=False)[0]
    names = {"chain": "elements of 100 chained ops", "mlp": "hidden units of an MLP, batch 64"}
    for axes, (program, rows) in zip(panels, programs.items()):
        for peer in measured(rows):
            points = [
                (int(row["row"].split("/")[1]), row["peers"][peer]["seconds"]["median"])
                for row in rows
                if row["peers"].get(peer, {}).get("seconds")
            ]
            marker = Marker.of(peer)
            axes.plot(*zip(*points), "-" if marker.filled else "--", linewidth=1.5, label=peer,
                      **marker.style(5))  # fmt: skip
        for row in rows:
            versus = row["static_pays"].get("gpugrad")
            if versus and versus["ratio"]:
                where = int(row["row"].split("/")[1]), versus["ours"]["median"]
                axes.annotate(
                    f"{1 / versus['ratio']['median']:.2g}x", where, xytext=(0, -15),
                    textcoords="offset points", ha="center", fontsize=9, color=COLOURS["gpugrad"],
                )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=names.get(program, program))
        log_axis(axes.xaxis, steps_label)
        log_axis(axes.yaxis, time_label)
        axes.margins(y=0.12)
    panels[0].set_ylabel("time of a step")
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def break_even(results: list[Found]) -> Figure:
    """Steps after which compiling has been repaid."""
    figure, axes = figure_of_rows(len(results))
    rows_down(axes, [r["row"] for r in results])
    shown = [name for name in SPEED_UPS if any(name in r["static_pays"] for r in results)]
    for y, result in enumerate(results):
        for name in shown:
            versus = result["static_pays"].get(name)
            if versus is None or versus["direction"] is None:
                continue
            main = name == "gpugrad"
            marker = Marker.of(SPEED_UPS[name])
            found = versus["break_even_steps"]
            if found.get("cold") is not None:
                axes.plot(max(1, found["cold"]), y, zorder=3, **marker.style(8 if main else 5))
            if main and found.get("cached") is not None:
                hollow = marker._replace(filled=False)
                axes.plot(max(1, found["cached"]), y, zorder=2, **hollow.style(8))
    axes.set(xscale="log", xlabel="steps until the compile time is saved")
    log_axis(axes.xaxis, steps_label)
    handles = [
        Line2D([], [], linestyle="none", label=SPEED_UPS[name],
               **Marker.of(SPEED_UPS[name]).style())
        for name in reversed(shown)
    ]  # fmt: skip
    if "gpugrad" in shown:
        hollow = Marker.of("gpugrad static")._replace(filled=False)
        label = "gpugrad static, from the cache"
        handles.insert(1, Line2D([], [], linestyle="none", label=label, **hollow.style()))
    axes.legend(handles=handles, frameon=False, fontsize=9, loc="center left",
                bbox_to_anchor=(1, 0.5))  # fmt: skip
    return figure


# ---- peers beside each other ---------------------------------------------------------------------


def all_peers(results: list[Found]) -> Figure:
    """Each peer's time of a step, as a multiple of torch eager's (or the slowest's without it)."""
    figure, axes = figure_of_rows(len(results))
    rows_down(axes, [r["row"] for r in results])
    peers = measured(results)
    for y, result in enumerate(results):
        spreads = {
            p: result["peers"][p]["seconds"]
            for p in peers
            if result["peers"].get(p, {}).get("seconds")
        }
        if not spreads:
            continue
        base = spreads.get("torch eager") or max(spreads.values(), key=lambda s: s["median"])
        for peer, spread in spreads.items():
            ours = PEERS[peer].library == "gpugrad"
            marker, size = Marker.of(peer), 9 if ours else 5.5
            low, middle, high = (spread[key] / base["median"] for key in ("low", "median", "high"))
            axes.plot([low, high], [y, y], color=marker.colour, linewidth=1.2, alpha=0.6)
            axes.plot(middle, y, zorder=4 if ours else 3, **marker.style(size))
    axes.axvline(1, color=INK, linewidth=1)
    axes.set(xscale="log", xlabel="time of a step / torch eager (lines: quartiles)")
    log_axis(axes.xaxis, times_label, (1.0, 2.0, 5.0))
    legend_of_peers(axes, peers, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def compile_times(results: list[Found]) -> Figure:
    """What the first calls cost: filled with nothing cached, hollow from the cache on the disk."""
    figure, axes = figure_of_rows(len(results))
    rows_down(axes, [r["row"] for r in results])
    peers = [peer for peer in measured(results) if PEERS[peer].static]
    for y, result in enumerate(results):
        for peer in peers:
            found = result["peers"].get(peer, {}).get("compile_seconds", {})
            size = 9 if PEERS[peer].library == "gpugrad" else 5.5
            for kind, filled in (("cold", True), ("cached", False)):
                if found.get(kind):
                    marker = Marker.of(peer)._replace(filled=filled)
                    axes.plot(found[kind], y, zorder=3, **marker.style(size))
    axes.set(xscale="log", xlabel="beyond steady calls: filled cold, hollow from the cache")
    log_axis(axes.xaxis, time_label)
    legend_of_peers(axes, peers, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
