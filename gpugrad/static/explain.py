"""``compiled.explain()``: what was made of a function, as text."""

from __future__ import annotations

from collections import Counter


def explain(compiled) -> str:
    """A report about a compiled function; see ``Compiled.explain``."""
    stats = compiled.stats
    lines = [
        f"{compiled.__name__}: {stats['calls']} calls, {stats['replays']} replayed, "
        f"{stats['variants']} variants, {stats['programs']} programs"
    ]
    for number, variant in enumerate(compiled._variants.values(), 1):
        lines += _variant(number, variant)
    for family in compiled.families or ():
        lines += family.report()
    return "\n".join(lines)


def _variant(number: int, variant) -> list[str]:
    if variant.rejected is not None:
        return [f"variant {number} runs eagerly: {variant.rejected}"]
    if not variant.programs:
        return [f"variant {number}: recorded, not yet twice the same"]
    lines = []
    for program in variant.programs:
        if program in variant.expected:
            lines.append(f"variant {number}: {program.calls} calls, like another size")
            continue
        lines.append(f"variant {number}: {program.calls} calls")
        lines += [f"  {line}" for line in _program(program)]
    return lines


def _program(program) -> list[str]:
    run, graph = program.run, program.graph
    kinds = Counter(node.call.kind for node in graph.nodes)
    lines = [
        f"{program.recorded.num_ops} operations recorded, {graph.num_ops} after the passes: "
        + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        f"{len(graph.inputs)} inputs, {len(graph.outputs)} results, {len(graph.stores)} tensors "
        "written in place",
        f"compiled in {1e3 * program.compile_seconds:.1f} ms",
    ]
    if hasattr(run, "report"):
        lines += run.report()
    if hasattr(run, "num_kernels"):
        lines.append(f"{run.num_kernels} native tasks in {run.num_runs} native calls")
    if found := getattr(run, "chains", None):
        lines.append(f"{sum(found)} of them in {len(found)} chains, shared by rows")
    if found := getattr(run, "prologues", 0):
        lines.append(f"{found} products compute an operand while they read it")
    if getattr(run, "bytes", 0):
        lines.append(f"{run.bytes} bytes of planned memory")
    if program.recording.derivative is not None:
        lines.append(f"on the tape of the caller: {program.second.num_ops} operations backward")
    identities = Counter(
        [*graph.identities, *(program.second.identities if program.second else ())]
    )
    for identity, n in identities.most_common():
        lines.append(f"as of real numbers: {identity}{f' ({n} times)' if n > 1 else ''}")
    for v, outcome in graph.guards:
        lines.append(f"guard: {v!r} is {outcome}")
    for name, n in Counter(getattr(run, "fallbacks", ())).items():
        lines.append(
            f"computed by NumPy between native runs: {name}{f' ({n} times)' if n > 1 else ''}"
        )
    return lines
