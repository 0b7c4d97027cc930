"""``gpugrad.compile``: a function that is recorded, and then replayed without running its Python.

A call looks up a variant by the shapes, dtypes and structure of the arguments. A variant is
recorded from real calls until two recordings in a row are the same (an optimizer makes its state in
the first); from then on its graph is replayed. What cannot be replayed runs as it is, with one
warning that says why.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .. import autocasting
from ..autograd import engine
from ..backend import arrays as backend_arrays
from ..config import modes, settings
from ..errors import at, user_line
from ..tensor import Tensor, highest
from ..tree import flatten, structure
from . import checking, dynamic, fast
from .floats import FOLLOWED, Floats
from .graph import Graph
from .recording import Recording, record
from .replay import MISS, ReplayedProgram
from .surroundings import Identity, Snapshot, Surroundings

# Recordings that may differ before a variant is given up.
_ATTEMPTS = 6
# Variants that are kept; more shapes than these run eagerly.
_VARIANTS = 64
# Where the arguments begin in a key.
_LEAVES = 2
# Ways through one variant's branches: programs, and recordings that wait for a second one.
_PROGRAMS = 64


class Compiled:
    """A compiled function; see ``compile``."""

    def __init__(
        self,
        function: Callable,
        check: int,
        outputs: str,
        any_size: bool,
        fullgraph: bool,
        algebra: str,
    ):
        self.__wrapped__ = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__
        self._function, self._checks = function, check
        self._borrow, self._fullgraph = outputs == "borrow", fullgraph
        self.algebra = algebra
        self.families = dynamic.Families() if any_size else None
        self.surroundings = Surroundings(function)
        self._variants: dict[Any, Variant] = {}
        self.lock = threading.RLock()
        self._warned: set[str] = set()
        self._fast: Callable[[Sequence], Any] | None = None  # the short way to the last program
        self.calls = 0
        self.recorded, self.record_seconds = 0, 0.0  # calls at which a recorder looked
        self.rejected: str | None = None  # why no call is recorded any more
        self._changes = 0  # recordings in a row that changed what the function reads
        self.floats = Floats()

    def __call__(self, *args, **kwargs):
        short = self._fast
        if short is not None and not kwargs:
            result = short(args)
            if result is not MISS:
                return result
        leaves, rebuild = flatten((args, kwargs)) if args or kwargs else ((), _no_arguments)
        if self.rejected is not None or (modes.special and _is_part(leaves)):
            return self._function(*args, **kwargs)
        key = self._key(leaves, args, kwargs)
        with self.lock:
            self.calls += 1
            variant = self._variants.get(key)
            if variant is None and self.floats.note(key, _LEAVES, leaves):
                key = self._key(leaves, args, kwargs)
                variant = self._variants.get(key)
            if variant is None:
                variant = self._new_variant(key, leaves)
            if variant.rejected is None or variant.programs:
                return self._run(variant, args, kwargs, leaves, rebuild)
        return self._function(*args, **kwargs)

    def __get__(self, instance, owner=None):
        """As a method: the instance is the first argument."""
        if instance is None:
            return self
        return lambda *args, **kwargs: self(instance, *args, **kwargs)

    def __getattr__(self, name: str):
        """What the function itself has: the parameters of a module, for example."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)

    def _run(self, variant: Variant, args, kwargs, leaves: Sequence, rebuild: Callable):
        for k, program in enumerate(variant.programs):
            if self._checks and program.calls < self._checks:
                result = checking.call(self, program, leaves)
            else:
                result = program(leaves)
            if result is not MISS:
                self._shorten(program, args, kwargs)
                if k:  # the way that was gone last is tried first
                    variant.programs.insert(0, variant.programs.pop(k))
                return result
        if variant.rejected is not None:
            return self._function(*args, **kwargs)
        return self._record(variant, args, kwargs, leaves, rebuild)

    def _shorten(self, program: ReplayedProgram, args, kwargs) -> None:
        """Find or make a short way for calls like one that was just replayed."""
        if modes.special:  # the short way knows nothing of autocasting
            return
        missed, self._fast = self._fast, None
        if not program.has_short_way or kwargs or self._checks:
            return
        if program.short is None or program.short is missed:  # what it checks has changed
            program.short = fast.make(self, program, args)
            program.has_short_way = program.short is not None
        self._fast = program.short

    # ---- variants

    def _key(self, leaves: Sequence, args, kwargs) -> Any:
        key: list = [not modes.unusual or modes.local.grad, settings.default_dtype]  # _LEAVES
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                a = leaf.array
                without_grad = leaf.grad is None
                history = leaf._node is not None and engine.hooks_of(leaf._node)
                key.append((a.shape, a.dtype, a.__class__, history, without_grad))
            elif backend_arrays.is_array(leaf):
                key.append((leaf.shape, leaf.dtype, leaf.__class__))
            elif leaf.__class__ is float and place in self.floats.followed:
                key.append((float, FOLLOWED))
            else:
                key.append((leaf.__class__, _hashable(leaf), *self.surroundings.of(leaf)))
        if len(leaves) > 1:
            key.append(_repetitions(leaves))
        if leaves:
            key.append(structure(args))
            key.append(structure(kwargs))
        key.append(self.surroundings.values())
        key.append(autocasting.key())
        return tuple(key)

    def _new_variant(self, key, leaves: Sequence) -> Variant:
        most, member = _VARIANTS, None
        if self.families is not None:
            most, member = dynamic.SIZES, self.families.member(key, _LEAVES, leaves)
        variant = Variant(member)
        if len(self._variants) >= most:
            variant.rejected = f"it has {most} variants already, {self._what_varies(key, leaves)}"
            self._reject(variant.rejected)
        else:
            self._variants[key] = variant
        return variant

    def _what_varies(self, key: tuple, leaves: Sequence) -> str:
        """What most of the variants differ in, and what to do about it."""
        others = [k for k in self._variants if len(k) == len(key)]
        counts = [len({k[_LEAVES + place] for k in others}) for place, _ in enumerate(leaves)]
        most = max(counts, default=0)
        if 2 * most < len(self._variants):
            return "for other arguments, or other values of what it reads beside them"
        leaf = leaves[counts.index(most)]
        if hasattr(leaf, "shape"):
            hint = "" if self.families is not None else "; dynamic=True keeps more sizes of a batch"
            return f"for {most} kinds of one array argument{hint}"
        what = f"for {most} values of one argument of type {type(leaf).__name__}"
        number = leaf.__class__ in (int, float)
        return f"{what}: pass a number that changes at every call as a tensor" if number else what

    def _record(self, variant: Variant, args, kwargs, leaves: Sequence, rebuild: Callable):
        self.surroundings.refresh()
        if self.floats.followed:
            leaves = self.floats.marked(leaves)
            args, kwargs = rebuild(leaves)
        around = self.surroundings.snapshot(leaves)
        start = time.perf_counter()
        result, recording = record(self._function, args, kwargs, leaves, variant.before)
        self.record_seconds += time.perf_counter() - start
        self.recorded += 1
        self._look_around(recording, around)
        state, around = modes.local.autocast, self.surroundings.snapshot(leaves)

        def function(leaves: Sequence):
            changed = around.changed()
            if changed is not None:
                raise RuntimeError(
                    f"{self.__name__} cannot run again as it was called: {changed}, which it "
                    f"reads, is another now"
                )
            given, named = rebuild(leaves)
            with autocasting.autocasting(state):
                return self._function(*given, **named)

        variant.take(recording, function, self._borrow, self.algebra)
        if variant.rejected is not None and self._changes:  # the next call has another variant
            self.rejected = variant.rejected
        if variant.rejected is not None:
            if recording.numbers:  # another try, with the numbers as constants
                self.floats.refuse()
                self._variants = {k: v for k, v in self._variants.items() if v is not variant}
            else:
                self._reject(variant.rejected)
        return result

    def _look_around(self, recording: Recording, before: Snapshot) -> None:
        """Whether a call changed what it reads, or drew random numbers of others: in its first
        calls, to prepare itself, it may."""
        self.surroundings.leave_out([*recording.owners, *recording.arrays_outside()])
        generator, changed = before.drawn(), before.changed()
        if generator is not None:
            what = f"it draws random numbers of {type(generator).__module__}: use gpugrad's"
        elif changed is not None:
            what = f"every call changes {changed}, which it reads"
        else:
            self._changes = 0
            return
        self._changes += 1
        recording.escaped = recording.escaped or what
        if self._changes >= _ATTEMPTS:
            self.rejected = recording.escaped
            self._reject(recording.escaped)

    def _reject(self, reason: str) -> None:
        if self._fullgraph:
            raise RuntimeError(f"{self.__name__} cannot be compiled as one graph: {reason}")
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn_explicit(
                f"{self.__name__} runs eagerly: {reason}", UserWarning, *user_line()
            )

    # ---- what it is

    @property
    def programs(self) -> list[ReplayedProgram]:
        """Everything that was compiled, the latest last."""
        return [p for variant in self._variants.values() for p in variant.programs[::-1]]

    @property
    def graph(self) -> Graph | None:
        """The graph that was compiled last, optimised; before that the last recording; None before
        the first call."""
        programs = self.programs
        if programs:
            return programs[-1].graph
        found = [v.previous.graph for v in self._variants.values() if v.previous is not None]
        return found[-1] if found else None

    @property
    def num_ops(self) -> int:
        """Operations that were recorded."""
        programs = self.programs
        if programs:
            return programs[-1].recorded.num_ops
        return 0 if self.graph is None else self.graph.num_ops

    @property
    def num_kernels(self) -> int:
        """Kernels and calls that a replay makes."""
        programs = self.programs
        return (
            getattr(programs[-1].run, "num_kernels", programs[-1].graph.num_ops) if programs else 0
        )

    @property
    def stats(self) -> dict[str, Any]:
        """Calls, variants, programs, seconds of recorded calls and of compilation, bytes of planned
        memory."""
        programs = self.programs
        return {
            "calls": self.calls,
            "replays": sum(p.calls for p in programs),
            "variants": len(self._variants),
            "programs": len(programs),
            "recorded": self.recorded,
            "record_seconds": self.record_seconds,
            "compile_seconds": sum(p.compile_seconds for p in programs),
            "bytes": sum(getattr(p.run, "bytes", 0) for p in programs),
        }

    def explain(self) -> str:
        """Operations, kernels, memory, guards, variants, and every fallback with its reason."""
        from .explain import explain

        return explain(self)

    def __repr__(self) -> str:
        return f"<compiled {self.__name__}: {len(self.programs)} programs, {self.calls} calls>"


def _is_part(leaves: Sequence) -> bool:
    """Whether a call is a part of what goes on in this thread: another recording, forward mode,
    ``vmap``, anomaly mode. Autocasting makes variants instead."""
    local = modes.local
    inside = local.recording is not None or local.levels or local.anomaly
    return bool(inside) or highest(leaves) is not None


def _no_arguments(leaves: Sequence) -> tuple[tuple, dict]:
    return (), {}


class Variant:
    """Calls with arguments of the same shapes, dtypes and structure: one program for each way
    through the function's branches."""

    def __init__(self, member: dynamic.Member | None = None):
        self.member = member  # of a family of sizes
        self.programs: list[ReplayedProgram] = []
        self.expected: list[ReplayedProgram] = []  # of them, by what is known of other sizes
        self.previous: Recording | None = None
        # the last recording of each way, by the outcomes of its branches, and how many there were
        self.ways: dict[tuple[int, ...], tuple[Recording, int]] = {}
        self.rejected: str | None = None

    @property
    def before(self) -> Recording | None:
        """The recording before the next one; of another size, if this size has none."""
        return self.previous or (None if self.member is None else self.member.family.recording)

    def take(self, recording: Recording, function: Callable, borrow: bool, algebra: str) -> None:
        """Compile a recording if it is the same as the one before, or the one that is expected of
        its size."""
        way = recording.way
        before, attempts = self.ways.get(way, (None, 0))
        earlier, self.previous = before or self.before, recording
        self.ways[way] = (recording, attempts + 1)
        if recording.failure is not None:
            reason, line = recording.failure
            self.rejected = f"{reason}{at(line)}"
            return
        what = before.differs(recording) if before is not None else "there was one call only"
        if before is not None and recording.numbers and recording.numbers == before.numbers:
            what = "a number that changed before is the same again"
        known = self.member is not None and self.member.family.expects(recording, self.member.dims)
        if what is None or known:
            what = recording.escaped
        if what is None:
            assert earlier is not None
            recording.keep_pinned(earlier)
            self.programs.insert(0, ReplayedProgram(recording, function, borrow, algebra))
            if known:
                self.expected.append(self.programs[0])
            elif self.member is not None:
                self.member.family.learn(recording, self.member.dims)
            self.previous = None
            del self.ways[way]
            if len(self.programs) > _PROGRAMS:
                self.programs.pop()
        elif attempts + 1 >= _ATTEMPTS:
            self.rejected = f"its calls differ: {what}" if what != recording.escaped else what
        elif len(self.ways) > _PROGRAMS:
            self.rejected = (
                f"{len(self.ways)} calls have gone ways through its branches that no other has gone"
            )


def _repetitions(leaves: Sequence) -> tuple | None:
    """Which arguments are the same array; None if all are different."""
    arrays = [id(getattr(leaf, "array", leaf)) for leaf in leaves if hasattr(leaf, "shape")]
    return None if len(set(arrays)) == len(arrays) else tuple(map(arrays.index, arrays))


def _hashable(leaf):
    if leaf.__class__ is float:
        return leaf.hex()  # tells -0.0 from 0.0, and a NaN is itself
    if leaf.__class__ is slice:
        return tuple(map(_hashable, (leaf.start, leaf.stop, leaf.step)))
    try:
        hash(leaf)
    except TypeError:
        return Identity(leaf)
    return leaf


def compile(
    function: Callable | None = None,
    *,
    check: int = 0,
    outputs: str = "copy",
    dynamic: bool = False,
    fullgraph: bool = False,
    algebra: str = "exact",
):
    """A function or module that is recorded from its first calls and then replayed as one program.

    The result is called like the function. Tensors it reaches by itself (parameters, buffers,
    optimizer state) are read and written where they are; ``loss.backward()``, optimizer and
    scheduler steps, gradients, random numbers and in-place writes are part of the program. Other
    shapes, dtypes, numbers or structures of the arguments make another variant; a branch on a
    tensor's value makes another way through a variant. Results equal those of eager mode; where
    operations are fused or sums reordered, to rounding.

    What is printed is printed by every replay, with its values. What a graph cannot do again (NumPy
    on ``tensor.array``, text that goes into a file, an object that changes from call to call) makes
    the function run eagerly, with one warning that says what and where; with ``fullgraph`` it
    raises RuntimeError. ``explain()`` tells what was made of it.

    With ``dynamic=True`` calls that differ in the first dimension of array arguments alone (the
    size of a batch) belong together. After two sizes were recorded as usual, every other size above
    1 is recorded from one call instead of two, if all that it computes follows from the size as it
    did before; Python that looks at the size is so never missed. More sizes are kept.

    ``check=N`` compares the first N replays with eager mode and raises RuntimeError naming the
    first operation that differs. ``outputs="borrow"`` returns tensors over the program's own memory
    instead of copies; using one after the next call raises RuntimeError.

    With ``algebra="real"`` a CPU's and a GPU's programs are also rewritten by identities that hold
    for real numbers, not for floats: ``x / 3`` becomes ``x * (1 / 3)``, ``x * 0`` zero, whatever x
    is, ``x @ y @ v`` a product of fewer multiplications. Results differ by rounding from those of
    eager mode, more where much is cancelled, and where infinities, NaN or the sign of zero matter;
    ``explain()`` names the identities.

    >>> import gpugrad as gg
    >>> w = gg.tensor(0.0, requires_grad=True)
    >>> @gg.compile
    ... def step(x, y):
    ...     loss = ((w * x - y) ** 2).mean()
    ...     w.grad = None
    ...     loss.backward()
    ...     with gg.no_grad():
    ...         w.sub_(0.1 * w.grad)
    ...     return loss
    >>> x = gg.tensor([1.0, 2.0])
    >>> for _ in range(20):
    ...     loss = step(x, 3 * x)
    >>> round(w.item(), 3)
    3.0
    """
    if outputs not in ("copy", "borrow"):
        raise ValueError(f"outputs must be 'copy' or 'borrow', got {outputs!r}")
    if algebra not in ("exact", "real"):
        raise ValueError(f"algebra must be 'exact' or 'real', got {algebra!r}")
    if function is None:
        return lambda f: Compiled(f, check, outputs, dynamic, fullgraph, algebra)
    return Compiled(function, check, outputs, dynamic, fullgraph, algebra)
