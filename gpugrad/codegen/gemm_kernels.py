"""The texts of the kernels of matrix products, ``kernel(table, numbers, first, last)``.

A unit of work is a block of rows times a panel of columns of one product. Threads share the units:

- the panel of B is packed: its rows one after the other, so that they stay in the L1 cache while
  all rows of the block are multiplied with them. Where this would not pay, it is read in place
- what a prologue, a program whose result is B, computes goes into the packed panel
- tiles of the block are summed in registers, ``tile.rows`` x ``tile.vectors`` vectors: per step one
  row of the panel and one number of every row of A
- sums go to a scratch on the stack, to which the next ``depth`` columns of A add
- at last the epilogue, a program whose first input is the product, is computed row by row

Every sum is made in the order of k: how units are shared, and where tiles begin, changes no bit.
Rows past the end of the block repeat the last one and are not stored; so do columns of a transposed
B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .arrays import BOOLEAN, Program
from .ir import Code, Value
from .llvm import (
    Unsupported,
    _data,
    _evaluate,
    _is_bool,
    _load,
    _load_one,
    _number,
    _share,
    _store,
    _sweep,
    rules_for,
)
from .machine import Machine
from .shares import parameters

# Vectors of a packed panel, and of the sums of a block, at most: of 32 bytes each 16 and 12 KiB,
# which leaves something of an L1 cache of 32 KiB to A. With a third of the rows (512, 512) x
# (512, 512) is 10 % slower: the panel is packed for every block.
PANEL, SUMS = 512, 384

_SIZES = {"float": 4, "double": 8}


class Tile(NamedTuple):
    """Sums in registers: ``rows`` x ``vectors`` vectors of ``lanes`` elements."""

    element: str
    lanes: int
    rows: int
    vectors: int

    @property
    def columns(self) -> int:
        return self.lanes * self.vectors

    @property
    def depth(self) -> int:
        """Rows of B in a panel at most."""
        return PANEL // self.vectors // self.lanes * self.lanes

    @property
    def block(self) -> int:
        """Rows of a block at most."""
        return SUMS // self.vectors // self.rows * self.rows


# Words of the table after the array objects (a, b, inputs, outputs). Threads share ``shares``: of
# ``each`` units, which are outer * inner * blocks * panels; or, if ``lines`` is not 0, of so many
# rows of the one matrix, in whose blocks and panels a thread goes by itself. ``block`` rows and
# ``depth`` columns of A are taken at a time; ``direct`` is not 0 where B is read in place. Strides
# are in bytes: of the batch dimensions, then of the matrix. After them come three per input and
# output: of the batch dimensions and between rows. Where a prologue computes B, the arrays that it
# reads are in place of b, the first with the strides of b; the others are followed by three like
# inputs (the last is not used), and at the end come two for each: through k and the columns.
WORDS = (
    "shares", "each", "lines",
    "inner", "blocks", "panels", "m", "n", "k", "block", "depth", "direct",
    "a_outer", "a_inner", "a_row", "a_k", "b_outer", "b_inner", "b_k", "b_column",
)  # fmt: skip


class Prologue(NamedTuple):
    """A program that computes B, and a letter for each of its inputs, as in ``Kernel``; with
    ``by_columns`` they are said of columns, not of rows."""

    program: Program
    pattern: str

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """Names and letters of the arrays that it reads."""
        pairs = zip(self.program.inputs, self.pattern, strict=True)
        return [(name, kind) for name, kind in pairs if kind in "vbVB"]


class Kernel(NamedTuple):
    """What a text is made for.

    ``pattern`` has a letter for every input of the program but the first, the product: ``-`` not
    read, ``n`` number, ``v`` numbers and ``b`` booleans along the row, ``V`` and ``B`` one for the
    whole row. ``by_columns``: neighbours in a column of B are neighbours in memory.
    """

    tile: Tile
    by_columns: bool
    program: Program
    pattern: str
    prologue: Prologue | None = None


def text(compiler: Machine, kernel: Kernel) -> str:
    return _Writer(compiler, kernel).text()


class _Share(NamedTuple):
    """What a call computes: units, and the rows and blocks of a matrix that they count."""

    start: Value
    stop: Value
    top: Value
    bottom: Value
    blocks: Value


class _Operand(NamedTuple):
    """A matrix of a unit in memory and the bytes from row to row."""

    pointer: Value
    row: Value


class _Writer:
    def __init__(self, compiler: Machine, kernel: Kernel):
        self.compiler, self.kernel, self.tile = compiler, kernel, kernel.tile
        self.code = code = Code(self.tile.element, self.tile.lanes)
        self.size = _SIZES[self.tile.element]
        self.parameters = parameters(code)
        self.table, self.numbers, *_ = self.parameters
        self.arrays = [
            (name, kind)
            for name, kind in zip(kernel.program.inputs[1:], kernel.pattern, strict=True)
            if kind in "vbVB"
        ]
        self.sources = kernel.prologue.arrays if kernel.prologue else [("b", "v")]
        self.first = 1 + len(self.sources)  # of the objects after B
        objects = self.first + len(self.arrays) + len(kernel.program.outputs)
        self.data = [
            _data(code, compiler, code.load(code.at(self.table, k), "ptr")) for k in range(objects)
        ]
        self.word = {name: self._word(objects + k) for k, name in enumerate(WORDS)}
        self.strides = [
            [self._word(objects + len(WORDS) + 3 * k + d) for d in range(3)]
            for k in range(objects - 2)
        ]
        within = objects + len(WORDS) + 3 * (objects - 2)
        self.within = [(self.word["b_k"], self.word["b_column"])]  # strides of sources
        for k in range(len(self.sources) - 1):
            self.within.append((self._word(within + 2 * k), self._word(within + 2 * k + 1)))

    def _word(self, place: int) -> Value:
        return self.code.load(self.code.at(self.table, place), "i64")

    def _scratch(self, elements: int) -> Value:
        return self.code.emit(f"alloca [{elements} x {self.tile.element}], align 64", "ptr")

    def _smaller(self, a: Value, b: Value | int) -> Value:
        b = self.code.like(a, b)
        return self.code.select(a.compare("slt", b), a, b)

    def _divide(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Quotient and remainder, in 32 bits: for 64 LLVM writes two divisions and a branch."""
        short = b.convert("trunc", "i32")
        quotient = self.code.emit(f"udiv {a.convert('trunc', 'i32')}, {short.name}", "i32")
        quotient = quotient.convert("zext", "i64")
        return quotient, a - quotient * b

    def _vector(self, pointer: Value, offset: Value | int = 0) -> Value:
        return self.code.load(self.code.at(pointer, offset, self.tile.element), self.code.vector)

    def _moved(self, pointer: Value, *distances: Value) -> Value:
        """A pointer moved by sums of bytes."""
        total = distances[0]
        for distance in distances[1:]:
            total = total + distance
        return self.code.at(pointer, total, "i8")

    def text(self) -> str:
        code, word, tile = self.code, self.word, self.tile
        self.packed = self._scratch(tile.columns * tile.depth)
        self.sums = self._scratch(tile.columns * tile.block)
        self.constants, self.factors = self._constants()
        self.rules = rules_for(self.compiler, tile.element)
        share = self._share()
        with code.loop(share.start, share.stop) as unit:
            rest, panel = self._divide(unit, word["panels"])
            rest, block = self._divide(rest, share.blocks)
            outer, inner = self._divide(rest, word["inner"])
            row, column = share.top + block * word["block"], panel * tile.columns
            rows = self._smaller(share.bottom - row, word["block"])
            columns = self._smaller(word["n"] - column, tile.columns)
            a = self._moved(
                self.data[0], outer * word["a_outer"], inner * word["a_inner"], row * word["a_row"]
            )
            steps = [(word["b_outer"], word["b_inner"], code.integer(0)), *self.strides]
            sources = [
                self._moved(pointer, outer * o, inner * i, column * along)
                for pointer, (o, i, _), (_, along) in zip(
                    self.data[1:], steps, self.within, strict=False
                )
            ]
            self._multiply(a, sources, rows, columns)
            operands = [
                _Operand(self._moved(pointer, outer * o, inner * i, row * r), r)
                for pointer, (o, i, r) in zip(
                    self.data[self.first :], steps[self.first - 1 :], strict=True
                )
            ]
            self._epilogue(operands, rows, column, columns)
        return code.function("kernel", self.parameters)

    def _share(self) -> _Share:
        """The units of a call, and between which rows of every matrix they lie."""
        code, word = self.code, self.word
        start, stop = _share(code, word["shares"], *self.parameters[2:], 1)
        zero, by_rows = code.integer(0), word["lines"].compare("ne", 0)
        top = start * word["lines"]
        bottom = code.select(by_rows, stop * word["lines"], word["m"])
        blocks, _ = self._divide(bottom - top + word["block"] - 1, word["block"])
        return _Share(
            code.select(by_rows, zero, start * word["each"]),
            code.select(by_rows, blocks * word["panels"], stop * word["each"]),
            top,
            bottom,
            code.select(by_rows, blocks, word["blocks"]),
        )

    def _multiply(self, a: Value, b: list[Value], rows: Value, columns: Value) -> None:
        """Leave the product of a block and a panel in the sums; ``b`` is what that is read from."""
        code, word, tile = self.code, self.word, self.tile
        zero, most = code.integer(0), word["depth"]
        nothing = code.select(word["k"].compare("eq", 0), rows * tile.columns, zero)
        with code.loop(zero, nothing, tile.lanes) as i:
            code.store(code.constant(0.0), code.at(self.sums, i, tile.element))
        with code.loop(zero, word["k"] + most - 1, most) as start:
            depth = self._smaller(word["k"] - start, most)
            left = self._moved(a, start * word["a_k"])
            right = [
                self._moved(p, start * step) for p, (step, _) in zip(b, self.within, strict=True)
            ]
            source, step = self._panel(right, depth, columns)
            with code.loop(zero, rows + (tile.rows - 1), tile.rows) as row:
                self._tile(left, row, rows, source, step, depth, start.compare("eq", 0))

    # ---- the panel

    def _panel(self, sources: list[Value], depth: Value, columns: Value) -> tuple[Value, Value]:
        """Where the rows of a panel are, and the bytes between them."""
        code, tile = self.code, self.tile
        packed_step = code.integer(tile.columns * self.size)
        if self.kernel.by_columns:
            self._pack_columns(sources, depth, columns)
            return self.packed, packed_step

        def pack() -> list[Value]:
            self._pack_rows(sources, depth, columns)
            return [self.packed, packed_step]

        if self.kernel.prologue:
            pack()
            return self.packed, packed_step
        whole = columns.compare("eq", tile.columns)
        in_place = self.word["direct"].compare("ne", 0) & whole
        source, step = code.choose(in_place, lambda: [sources[0], self.word["b_k"]], pack)
        return source, step

    def _pack_rows(self, sources: list[Value], depth: Value, columns: Value) -> None:
        code, tile = self.code, self.tile

        def copy(masks: Sequence[Value | None]) -> list[Value]:
            with code.loop(code.integer(0), depth) as k:
                read = self._line(
                    [
                        self._moved(p, k * step)
                        for p, (step, _) in zip(sources, self.within, strict=True)
                    ]
                )
                for v in range(tile.vectors):
                    place = code.at(self.packed, k * tile.columns + v * tile.lanes, tile.element)
                    code.store(read(code.integer(v * tile.lanes), masks[v]), place)
            return []

        masks = [code.first_lanes(columns - v * tile.lanes) for v in range(tile.vectors)]
        whole = columns.compare("eq", tile.columns)
        code.choose(whole, lambda: copy([None] * tile.vectors), lambda: copy(masks))

    def _pack_columns(self, sources: list[Value], depth: Value, columns: Value) -> None:
        """Squares of a transposed B are transposed in registers."""
        code, tile = self.code, self.tile
        lanes = tile.lanes
        with code.loop(code.integer(0), code.integer(tile.columns), lanes) as j:
            places = [self._smaller(j + x, columns - 1) for x in range(lanes)]
            lines = [
                self._line(
                    [
                        self._moved(p, place * along)
                        for p, (_, along) in zip(sources, self.within, strict=True)
                    ]
                )
                for place in places
            ]
            with code.loop(code.integer(0), depth + (lanes - 1), lanes) as k:
                rest = depth - k
                square = code.choose(
                    rest.compare("sge", lanes),
                    lambda lines=lines, k=k: [read(k, None) for read in lines],
                    lambda lines=lines, k=k, rest=rest: self._first(lines, k, rest),
                )
                vectors = transposed(code, square)
                for x, vector in enumerate(vectors):
                    place = (k + x) * tile.columns + j
                    code.store(vector, code.at(self.packed, place, tile.element))

    def _first(self, lines: list[Callable], k: Value, count: Value) -> list[Value]:
        """Vectors of ``count`` elements and others, zeros or made of zeros."""
        mask = self.code.first_lanes(count)
        return [read(k, mask) for read in lines]

    def _line(self, pointers: list[Value]) -> Callable[[Value, Value | None], Value]:
        """How a row or column of B is read, or computed by the prologue: a function of a place in
        it and a mask that gives a vector."""
        code, prologue = self.code, self.kernel.prologue
        if prologue is None:
            return lambda i, mask: _load(code, pointers[0], i, mask, False)
        given = list(zip(self.sources, pointers, strict=True))
        held = {
            name: _load_one(code, pointer, kind == "B")
            for (name, kind), pointer in given
            if kind in "VB"
        }

        def read(i: Value, mask: Value | None) -> Value:
            vectors = {
                name: _load(code, pointer, i, mask, kind == "b")
                for (name, kind), pointer in given
                if kind in "vb"
            }
            env = self.factors | held | vectors
            (result,) = _evaluate(code, prologue.program.outputs, env, self.rules)
            if _is_bool(result):
                raise Unsupported
            return result

        return read

    # ---- the tile

    def _tile(
        self, a: Value, row: Value, rows: Value, b: Value, step: Value, depth: Value, first: Value
    ) -> None:
        """Multiply some rows with the panel: the first time from 0, then from the sums so far."""
        code, tile = self.code, self.tile
        lefts = [
            self._moved(a, self._smaller(row + r, rows - 1) * self.word["a_row"])
            for r in range(tile.rows)
        ]
        places = [
            code.at(self.sums, (row + r) * tile.columns + v * tile.lanes, tile.element)
            for r in range(tile.rows)
            for v in range(tile.vectors)
        ]

        def step_of_k(values: list[Value]) -> list[Value]:
            offset, source, *sums = values
            right = [self._vector(source, v * tile.lanes) for v in range(tile.vectors)]
            for r, pointer in enumerate(lefts):
                left = code.splat(code.load(code.at(pointer, offset, "i8"), tile.element))
                for v in range(tile.vectors):
                    at = r * tile.vectors + v
                    sums[at] = code.fma(left, right[v], sums[at])
            return [offset + self.word["a_k"], code.at(source, step, "i8"), *sums]

        start = code.choose(
            first,
            lambda: [code.constant(0.0)] * len(places),
            lambda: [code.load(place, code.vector) for place in places],
        )
        _, _, *sums = code.fold(depth, [code.integer(0), b, *start], step_of_k)
        for value, place in zip(sums, places, strict=True):
            code.store(value, place)

    # ---- the epilogue

    def _constants(self) -> tuple[dict[str, Value], dict[str, Value]]:
        """Alpha and the numbers among the inputs, then those of the prologue, as vectors."""
        program, pattern, prologue = self.kernel.program, self.kernel.pattern, self.kernel.prologue
        self.alpha = _number(self.code, self.numbers, 0)
        place, found = 1, []
        pairs = [zip(program.inputs[1:], pattern, strict=True)]
        if prologue:
            pairs.append(zip(prologue.program.inputs, prologue.pattern, strict=True))
        for named in pairs:
            names = [n for n, kind in named if kind == "n"]
            found.append(
                {n: _number(self.code, self.numbers, place + k) for k, n in enumerate(names)}
            )
            place += len(names)
        return found[0], found[1] if prologue else {}

    def _epilogue(
        self, operands: Sequence[_Operand], rows: Value, column: Value, columns: Value
    ) -> None:
        """Compute the program from the sums, whole rows of the panel or their beginnings."""
        code, tile = self.code, self.tile

        def each_row(sweep: Callable) -> list[Value]:
            with code.loop(code.integer(0), rows) as row:
                sweep(*self._row(operands, row, column))
            return []

        def whole(read: Callable, compute: Callable, write: Callable) -> None:
            for v in range(tile.vectors):
                i = code.integer(v * tile.lanes)
                write(i, None, compute(read(i, None)))

        def some(read: Callable, compute: Callable, write: Callable) -> None:
            _sweep(code, code.integer(0), columns, read, compute, write)

        is_whole = columns.compare("eq", tile.columns)
        code.choose(is_whole, lambda: each_row(whole), lambda: each_row(some))

    def _row(self, operands: Sequence[_Operand], row: Value, column: Value) -> tuple:
        """How a row is read, computed and written: functions for ``_sweep``."""
        code, program = self.code, self.kernel.program
        sums = code.at(self.sums, row * self.tile.columns, self.tile.element)
        pointers = [self._moved(o.pointer, row * o.row) for o in operands]
        values = dict(self.constants)
        moving: list[tuple[str, Value, bool]] = []
        for (name, kind), pointer in zip(self.arrays, pointers, strict=False):
            if kind in "VB":
                values[name] = _load_one(code, pointer, kind == "B")
            else:
                moving.append((name, self._at_column(pointer, column, kind == "b"), kind == "b"))
        targets = [
            self._at_column(pointer, column, e.op in BOOLEAN)
            for pointer, e in zip(pointers[len(self.arrays) :], program.outputs, strict=True)
        ]

        def read(i: Value, mask: Value | None) -> list[Value]:
            inputs = [_load(code, pointer, i, mask, boolean) for _, pointer, boolean in moving]
            return [self._vector(sums, i), *inputs]

        def compute(vectors: list[Value]) -> list[Value]:
            names = [program.inputs[0], *[name for name, *_ in moving]]
            env = values | dict(zip(names, [vectors[0] * self.alpha, *vectors[1:]], strict=True))
            results = _evaluate(code, program.outputs, env, self.rules)
            for e, value in zip(program.outputs, results, strict=True):
                if _is_bool(value) != (e.op in BOOLEAN):
                    raise Unsupported
            return results

        def write(i: Value, mask: Value | None, results: list[Value]) -> list[Value]:
            for pointer, value in zip(targets, results, strict=True):
                _store(code, value, pointer, i, mask)
            return []

        return read, compute, write

    def _at_column(self, pointer: Value, column: Value, boolean: bool) -> Value:
        return self.code.at(pointer, column, "i8" if boolean else self.tile.element)


def transposed(code: Code, rows: list[Value]) -> list[Value]:
    """The columns of a square of vectors: every round swaps two blocks of each pair of rows, ever
    smaller ones."""
    rows, lanes = list(rows), len(rows)
    half = lanes // 2
    while half:
        lower = [i if not i & half else lanes + i - half for i in range(lanes)]
        upper = [i + half if not i & half else lanes + i for i in range(lanes)]
        for r in range(lanes):
            if not r & half:
                a, b = rows[r], rows[r + half]
                rows[r], rows[r + half] = _shuffle(code, a, b, lower), _shuffle(code, a, b, upper)
        half //= 2
    return rows


def _shuffle(code: Code, a: Value, b: Value, lanes: Sequence[int]) -> Value:
    numbers = ", ".join(f"i32 {n}" for n in lanes)
    return code.emit(f"shufflevector {a}, {b}, <{len(lanes)} x i32> <{numbers}>", a.type)
