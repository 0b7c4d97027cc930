"""The short way to a replay: one written-out function that checks that nothing has changed since
the last call, runs the native program, and wraps what it computed.

It serves calls with tensors, numbers and objects as positional arguments, and answers ``MISS`` for
everything that the general way (``compiled.py``) has to look at. For a training step with one
argument it reads

    def fast(args):
        if modes.unusual or writes.count != 12 or settings.default_dtype is not d: return MISS
        if c0.cell_contents is not o0 or globals["lr"] is not o1: return MISS
        if len(args) != 1: return MISS
        x0 = args[0]
        if x0.__class__ is not Tensor or x0._node is not None or x0.grad is not None: return MISS
        a0 = x0.array
        if a0.shape != s0 or a0.dtype is not t0: return MISS
        if p0.array is not q0 or p0._node is None: return MISS
        with lock:
            r = entry(a0)
            if r is None: return MISS
            note_writes()
            p0.grad = g0
            return wrap(r[0].copy())

and where the result goes on the tape of the caller, from the lock on

        with lock, half_lock:
            begin(args)
            r = entry(a0)
            if r is None: return MISS
            t0 = wrap(r[0].copy())
            t0._node = record(edges, (p0, x0), (r[1], a0, q0), (x0,))
            return t0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from ..autograd.engine import Leaf, Part, hooks_of, spent_node
from ..backend.arrays import is_array
from ..compiler import Changed, module_writes
from ..config import modes, settings
from ..tensor import Tensor, clock, wrap
from ..tree import flatten
from .recording import Place
from .replay import MISS, ReplayedProgram, view_of
from .run_cpu import NativeProgram
from .sources import Argument, HostResult, Live, LiveArray

# Sources whose memory is that of a tensor.
_OF_TENSORS = (Argument, Live)


class _Source:
    """Lines of a function and the names they use."""

    def __init__(self):
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}

    def name(self, value) -> str:
        key = f"k{len(self.names)}"
        self.names[key] = value
        return key

    def add(self, line: str) -> None:
        self.lines.append(line)

    def unless(self, *conditions: str) -> None:
        """Leave the short way unless all conditions hold."""
        self.lines.append(f"    if not ({' and '.join(conditions)}): return MISS")


def make(compiled, program: ReplayedProgram, args: Sequence) -> Callable[[Sequence], Any] | None:
    """The short way for calls like this one, or None where there is none."""
    run, recording = program.run, program.recording
    if run.__class__ is not NativeProgram or not run.built:
        return None
    if program.lends or recording.output:
        return None
    if not all(_is_leaf(a) for a in args):
        return None
    if any(a.__class__ is float and (a == 0.0 or a != a) for a in args):
        return None  # -0.0 == 0.0, and a NaN is not itself
    given = [id(a.array) for a in args if isinstance(a, Tensor)]
    if len(set(given)) < len(given) or program.overlaps_matter:
        return None
    known = (Argument, HostResult, Live, LiveArray)
    if not all(s.__class__ in known for s in program.graph.sources):
        return None
    if any(t.__class__ is Argument for t, _ in recording.grads) or recording.switched:
        return None
    results = [id(p) for p in recording.places if p.__class__ is Place]
    if len(set(results)) < len(results):  # one tensor is returned twice
        return None
    stored = {id(target) for target, _ in program.graph.stores}
    pairs = zip(program.graph.inputs, program.graph.sources, strict=True)
    if any(id(v) in stored and source.__class__ is LiveArray for v, source in pairs):
        return None
    s = _Source()
    s.names.update(MISS=MISS, modes=modes, writes=module_writes, settings=settings, Tensor=Tensor,
                   wrap=wrap, lock=compiled.lock, entry=run.entry, program=program)  # fmt: skip
    s.names["compiled"] = compiled
    _check_surroundings(s, compiled.surroundings)
    arrays = _check_arguments(s, args, recording.pinned, compiled)
    _check_live(s, program)
    if program.half is None:
        s.add("    with lock:")
    else:
        s.names.update(half_lock=program.half.lock, begin=program.half.begin)
        s.add("    with lock, half_lock:")
        s.add("        begin(args)")
    if run.apart:
        s.names.update(are_free=program.gradients.are_free, gradients=program.gradients)
        s.add("        if not are_free(): return MISS")
    _run(s, program, run, arrays)
    _leave(s, program, run, arrays)
    exec(compile("\n".join(["def fast(args):", *s.lines]), "<gpugrad replay>", "exec"), s.names)
    return s.names["fast"]


def _check_surroundings(s: _Source, surroundings) -> None:
    dtype = s.name(settings.default_dtype)
    if not modes.unusual or modes.local.grad:
        recording = "not modes.unusual or (modes.local.grad and not modes.special)"
    else:
        recording = "modes.unusual and not (modes.local.grad or modes.special)"
    s.unless(f"({recording})", f"writes.count == {module_writes.count}",
             f"settings.default_dtype is {dtype}")  # fmt: skip
    conditions = [read.condition(s.name) for read in surroundings.reads]
    if conditions:
        s.unless(*conditions)


def _is_leaf(argument) -> bool:
    """Whether an argument is a tensor, a number, or an object that is nothing but itself."""
    leaves, _ = flatten(argument)
    return len(leaves) == 1 and leaves[0] is argument and not is_array(argument)


def _check_arguments(s: _Source, args: Sequence, pinned, compiled) -> dict[int, str]:
    """The names of the arguments' arrays, by place."""
    arrays: dict[int, str] = {}
    s.unless(f"len(args) == {len(args)}")
    for k, a in enumerate(args):
        s.add(f"    x{k} = args[{k}]")
        if a.__class__ is float and k in compiled.floats.followed:
            s.unless(f"x{k}.__class__ is float")
            arrays[k] = f"x{k}"
            continue
        if a.__class__ in (int, float, bool, str):
            s.unless(f"x{k}.__class__ is {s.name(a.__class__)}", f"x{k} == {s.name(a)}")
            continue
        if not isinstance(a, Tensor):
            reads = compiled.surroundings.reads_of(a)
            s.unless(f"x{k} is {s.name(a)}", *[read.condition(s.name) for read in reads])
            continue
        node = "is not None" if a._node is not None else "is None"
        if k in pinned:
            s.unless(f"x{k} is {s.name(a)}")
        s.unless(f"x{k}.__class__ is {s.name(a.__class__)}", f"x{k}._node {node}",
                 f"x{k}.grad {'is None' if a.grad is None else 'is not None'}")  # fmt: skip
        if a._node is not None:
            s.unless(f"not {s.name(hooks_of)}(x{k}._node)")
        s.add(f"    a{k} = x{k}.array")
        s.unless(f"a{k}.__class__ is {s.name(a.array.__class__)}",
                 f"a{k}.shape == {s.name(a.array.shape)}",
                 f"a{k}.dtype is {s.name(a.array.dtype)}")  # fmt: skip
        arrays[k] = f"a{k}"
    different = [f"{a} is not {b}" for a, b in combinations(arrays.values(), 2)]
    if different:
        s.unless(*different)
    return arrays


def _check_live(s: _Source, program: ReplayedProgram) -> None:
    conditions = []
    leaves = {id(t) for t in _leaf_targets(program)}
    for source in program.graph.sources:
        if source.__class__ is Live:
            t, node = s.name(source.tensor), source.tensor._node
            conditions.append(f"{t}.array is {s.name(source.tensor.array)}")
            if id(source.tensor) not in leaves:
                conditions.append(f"{t}._node is {'None' if node is None else 'not None'}")
    for tensor in _leaf_targets(program):
        conditions.append(f"{s.name(tensor)}._node is {s.name(tensor._node)}")
    without = program.recording.entered_without
    for tensor, _ in program.recording.grads:
        if id(tensor) in without:
            conditions.append(f"{s.name(tensor)}.grad is None")
    if conditions:
        s.unless(*conditions)


def _run(s: _Source, program: ReplayedProgram, run: NativeProgram, arrays: dict) -> None:
    s.names.update(Changed=Changed, undo=program.undo)
    hosts = program.hosts
    for k, host in enumerate(hosts):
        s.names[f"host{k}"] = host.call
    if hosts:
        s.add("        count = 0")
        s.add("        try:")
        for k in range(len(hosts)):
            s.add(f"            h{k} = host{k}(); count = {k + 1}")
        s.add("        except Changed:")
        s.add("            undo(count)")
        s.add("            return MISS")
    given = []
    for place, _ in run.given:
        source = program.graph.sources[place]
        if source.__class__ is Argument:
            given.append(arrays[source.place])
        else:
            number = next(k for k, h in enumerate(hosts) if h is source.host)
            given.append(f"h{number}[{source.place}]")
    s.add("        try:")
    s.add(f"            r = entry({', '.join(given)})")
    s.add("        except Exception:")
    s.add("            r = None")
    s.add("        if r is None:")
    s.add("            undo()")
    s.add("            return MISS")
    s.add("        program.calls += 1")
    s.add("        compiled.calls += 1")


def _with_history(array) -> Tensor:
    """A result that requires a gradient, of which the program has computed it already."""
    t = wrap(array)
    t._node = spent_node(array.shape)
    return t


def _leaf_targets(program: ReplayedProgram) -> list[Tensor]:
    """The tensors that the program reaches by itself and that accumulate a gradient."""
    targets = [] if program.half is None else program.half.derivative.targets
    return [t for t in targets if isinstance(t, Tensor) and t._node.__class__ is Leaf]


def _record(s: _Source, program: ReplayedProgram, arrays: dict[int, str]) -> None:
    """Put the results ``t0``, ``t1``... that have a derivative on the tape."""
    half, run = program.half, program.run
    assert half is not None
    targets = half.derivative.targets
    if len(_leaf_targets(program)) == len(targets):
        edges = s.name(tuple([t._node for t in targets]))
    else:
        nodes = [f"{s.name(t) if isinstance(t, Tensor) else f'x{t}'}._node, " for t in targets]
        edges = f"({''.join(nodes)})"

    def tensor(source) -> str:
        return f"x{source.place}" if source.__class__ is Argument else s.name(source.tensor)

    def value(saved: bool, place: int) -> str:
        if saved:
            k = len(run.copied) - program.saved + place
            return f"r[{k}].copy()" if run.copied[k] else f"r[{k}]"
        source = program.graph.sources[place]
        if source.__class__ is Argument:
            return arrays[source.place]
        return s.name(source.read())

    watched = [f"{tensor(source)}, " for source in half.watched if source.__class__ in _OF_TENSORS]
    values = [f"{value(*read)}, " for read in half.reads]
    s.names["record"] = half.record
    s.add(f"        n = record({edges}, ({''.join(watched)}), ({''.join(values)}), args)")
    places = half.derivative.differentiable
    if half.single:
        s.add(f"        t{places[0]}._node = n")
        return
    s.names["Part"] = Part
    for index, place in enumerate(places):
        s.add(f"        t{place}._node = Part(n, {index}, {s.name(half.shapes[index])})")


def _leave(
    s: _Source, program: ReplayedProgram, run: NativeProgram, arrays: dict[int, str]
) -> None:
    recording, graph = program.recording, program.graph
    s.names["clock"] = clock
    line = s.name(program.line)
    written = [graph.sources[graph.inputs.index(target)] for target, _ in graph.stores]
    if written:
        s.add("        with clock.lock:")
        s.add("            clock.now = now = clock.now + 1")
        for source in written:
            t = f"x{source.place}" if source.__class__ is Argument else s.name(source.tensor)
            s.add(f"        v = {t}._version")
            s.add(f"        if v is None: {t}._version = [now, {line}]")
            s.add(f"        else: v[0] = now; v[1] = {line}")
    k, handed = recording.count, []
    for tensor, value in recording.grads:
        t = s.name(tensor)
        if value is None:
            s.add(f"        {t}.grad = None")
            continue
        if k in run.apart:
            s.add(f"        {t}.grad = g{k} = wrap(r[{k}])")
            handed.append(f"({t}, g{k}, {k})")
        else:
            s.add(f"        {t}.grad = wrap(r[{k}].copy())")
        k += 1
    if handed:
        s.add(f"        gradients.handed = [{', '.join(handed)}]")
    on_tape: list[int] = []
    if program.half is not None:
        on_tape = program.half.derivative.differentiable
        for place in on_tape:
            s.add(f"        t{place} = wrap(r[{place}].copy())")
        _record(s, program, arrays)
    found = []
    for p in recording.places:
        if p.__class__ is not Place:
            found.append(s.name(p))
        elif p.result in on_tape and not (p.bare or p.number):
            found.append(f"t{p.result}")
        elif p.result is not None:
            copy = f"r[{p.result}].copy()"
            value = f"r[{p.result}].item()" if p.number else copy
            tensor = f"{'spent' if p.result in recording.with_history else 'wrap'}({copy})"
            found.append(value if p.bare or p.number else tensor)
        else:
            base = f"x{p.argument}" if p.argument is not None else s.name(p.tensor)
            found.append(base if p.chain is None else f"view_of({base}, {s.name(p.chain)})")
    s.names.update(rebuild=recording.rebuild, spent=_with_history, view_of=view_of)
    several = f"rebuild([{', '.join(found)}])"
    s.add(f"        return {found[0] if recording.single else several}")
