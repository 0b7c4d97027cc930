"""The texts of the convolution kernels, for one layer each; the batch size is an argument.

All three vectorise over columns and keep a tile of results in registers:

forward          channels x rows x columns of the output; per tap one broadcast weight and one load
                 of inputs, both used several times.
weight gradient  output channels x taps, every lane its own partial sum over rows and images.
input gradient   taps of one kernel row x rows x columns: what every tap of a row adds, summed over
                 output channels and kernel rows, is shifted to its place only at the end. No
                 multiplication by padding zeros: 2.2 times fewer than a forward convolution of the
                 padded cotangent on 8x8 outputs of a 5x5 kernel.

Images are copied to a scratch image first where they need a border of zeros, where a vector would
read past the end of a row, or where the stride is not 1: columns are then sorted by their remainder
(``phases``), so that a vector of outputs reads a vector of inputs for any stride.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import gcd
from typing import NamedTuple

from .convolution_epilogues import PLAIN, Epilogue, Place, Results
from .ir import Value
from .loops import Writer, rounded
from .machine import Machine


class Layer(NamedTuple):
    """The sizes of a convolution except the batch."""

    element: str  # float or double
    channels: int  # of the input, all groups
    filters: int  # channels of the output, all groups
    groups: int
    image: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]  # zeros above and left of the image
    dilation: tuple[int, int]

    @property
    def depth(self) -> int:
        """Input channels of one group."""
        return self.channels // self.groups

    @property
    def width(self) -> int:
        """Output channels of one group."""
        return self.filters // self.groups

    @property
    def taps(self) -> int:
        """Weights of one output channel."""
        return self.depth * self.kernel[0] * self.kernel[1]

    @property
    def work(self) -> int:
        """Multiplications of one image."""
        return self.filters * self.out[0] * self.out[1] * self.taps


class Tile(NamedTuple):
    """What one round of the innermost loops computes."""

    lanes: int
    channels: int
    rows: int
    vectors: int


class Frame(NamedTuple):
    """How images lie in the scratch, or in their array if ``direct``."""

    direct: bool
    channels: int
    image: tuple[int, int]
    start: tuple[int, int]  # where the image begins
    step: int  # phases its columns are sorted into
    rows: int
    phase: int  # columns of one phase

    by_row: bool  # whether rows of all channels lie together, or channels

    @property
    def columns(self) -> int:
        return self.phase * self.step

    @property
    def pitch(self) -> int:
        """From row to row."""
        return self.columns * self.channels if self.by_row else self.columns

    @property
    def plane(self) -> int:
        """From channel to channel."""
        return self.columns if self.by_row else self.columns * self.rows

    @property
    def size(self) -> int:
        return self.channels * self.rows * self.columns


def input_frame(layer: Layer, columns: int, by_row: bool) -> Frame:
    """The frame of an input whose outputs are computed up to ``columns``, which may be past the
    end."""
    (height, width), (top, left), step = layer.image, layer.start, layer.stride[1]
    reach = [(k - 1) * d for k, d in zip(layer.kernel, layer.dilation, strict=True)]
    rows = (layer.out[0] - 1) * layer.stride[0] + reach[0] + 1
    common = (layer.channels, layer.image, layer.start, step)
    fits = columns + reach[1] <= width and rows <= height
    if (top, left, step) == (0, 0, 1) and fits:
        return Frame(True, *common, height, width, False)
    phase = max(columns + reach[1] // step, (left + width - 1) // step + 1)
    return Frame(False, *common, max(rows, top + height), phase, by_row)


def cotangent_frame(layer: Layer, columns: int, margin: int) -> Frame:
    """The frame of a cotangent, with zeros right of its columns and ``margin`` rows above and
    below."""
    height, width = layer.out
    direct = columns == width and margin == 0
    rows = height + 2 * margin
    return Frame(direct, layer.filters, layer.out, (margin, 0), 1, rows, columns, margin > 0)


def column_vectors(layer: Layer, lanes: int) -> int:
    """Vectors that cover a row of the output."""
    return -(-layer.out[1] // lanes)


class _Writer(Writer):
    """A writer that knows its layer."""

    def __init__(
        self, compiler: Machine, layer: Layer, lanes: int, arrays: str, integers: str, numbers=()
    ):
        super().__init__(compiler, layer.element, lanes, arrays, integers, numbers)
        self.layer = layer


def _with_epilogue(
    compiler: Machine, layer: Layer, lanes: int, operands: str, epilogue: Epilogue
) -> _Writer:
    """The writer of ``kernel(<operands>, <inputs of the epilogue>, <outputs>, scratch, <numbers>,
    first image, last image)``."""
    others = [f"in{k}" for k in range(len(epilogue.arrays))]
    others += [f"out{k}" for k in range(len(epilogue.program.outputs))]
    numbers = [f"number{k}" for k in range(len(epilogue.numbers))]
    arrays = " ".join([operands, *others, "scratch"])
    return _Writer(compiler, layer, lanes, arrays, "first last", numbers)


def _copy_image(w: _Writer, frame: Frame, image: Value, scratch: Value) -> None:
    """An image into its frame, whose border is zero already."""
    (height, width), (top, left), step = frame.image, frame.start, frame.step
    with w.repeat(frame.channels) as c, w.repeat(height) as h:
        source = w.at(image, (c * height + h) * width)
        target = w.at(scratch, c * frame.plane + (h + top) * frame.pitch)
        if step == 1:
            w.copy(source, w.at(target, left), width)
            return
        for phase in range(step):
            first = (phase - left) % step  # the first column of this phase
            if first < width:
                place = phase * frame.phase + (left + first) // step
                with w.repeat(-(-(width - first) // step)) as i:
                    w.store(w.vector(source, i * step + first, 1), target, i + place)


def _column(layer: Layer, frame: Frame, tap: int) -> int:
    """Where the column of a tap lies, seen from the first column of a window."""
    distance = tap * layer.dilation[1]
    return distance % layer.stride[1] * frame.phase + distance // layer.stride[1]


def pieces(count: int, most: int) -> list[range]:
    """``range(count)`` in parts of at most ``most``, about equally long."""
    parts = -(-count // most)
    cuts = [count * k // parts for k in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(cuts)]


# ------------------------------------------------------------------------------------------------
# forward


def forward_frame(layer: Layer, tile: Tile) -> Frame:
    return input_frame(layer, max(layer.out[1], tile.vectors * tile.lanes), True)


def forward_scratch(layer: Layer, tile: Tile) -> int:
    """Elements of scratch a thread needs."""
    frame = forward_frame(layer, tile)
    return 1 if frame.direct else rounded(frame.size, tile.lanes)


# Multiplications of vectors written out one after the other; LLVM takes 25 us for each.
UNROLLED = 128


def forward_text(compiler: Machine, layer: Layer, tile: Tile, epilogue: Epilogue = PLAIN) -> str:
    """``kernel(x, w, <arrays of the epilogue>, scratch, <its numbers>, first image, last
    image)``."""
    epilogue.demand(tile.channels * tile.rows * tile.vectors)
    w = _with_epilogue(compiler, layer, tile.lanes, "x w", epilogue)
    x, weights, *_, scratch = w.data
    first, last = w.integers
    frame = forward_frame(layer, tile)
    if not frame.direct:
        w.clear(scratch, forward_scratch(layer, tile))
    (height, width), (out_h, out_w) = layer.image, layer.out
    results = Results(compiler, w, epilogue, (layer.filters, out_h, out_w))
    with w.code.loop(first, last) as n:
        image = w.at(x, n * (layer.channels * height * width))
        if not frame.direct:
            _copy_image(w, frame, image, scratch)
            image = scratch
        with (
            w.repeat(layer.groups) as g,
            w.starts(out_h, tile.rows) as row,
            w.starts(out_w, tile.vectors * tile.lanes) as column,
            w.starts(layer.width, tile.channels) as k,
        ):
            channel = g * layer.width + k
            corner = g * (layer.depth * frame.plane) + row * (layer.stride[0] * frame.pitch)
            sums = _forward_sums(
                w, tile, frame, w.at(image, corner + column), w.at(weights, channel * layer.taps)
            )
            _forward_store(w, tile, results.at(n, channel, row, column), sums)
    return w.text()


def _forward_sums(w: _Writer, tile: Tile, frame: Frame, x: Value, weights: Value) -> list[Value]:
    """The outputs of one tile, in order of channel, row and vector."""
    layer = w.layer
    kh, kw = layer.kernel
    whole = kh * kw * tile.channels * tile.rows * tile.vectors <= UNROLLED

    def taps_of_row(values: list[Value], row: int = 0) -> list[Value]:
        x, weights, *sums = values
        for tap in range(kw):
            offset = row * layer.dilation[0] * frame.pitch + _column(layer, frame, tap)
            inputs = [
                partial(w.vector, x, offset + r * layer.stride[0] * frame.pitch + v * tile.lanes)
                for r in range(tile.rows)
                for v in range(tile.vectors)
            ]
            factors = [
                partial(w.broadcast, weights, c * layer.taps + row * kw + tap)
                for c in range(tile.channels)
            ]
            sums = w.products(factors, inputs, sums)
        return [x, weights, *sums]

    def rows_of_channel(values: list[Value]) -> list[Value]:
        x, weights, *sums = values
        if whole:
            for row in range(kh):
                sums = taps_of_row([x, weights, *sums], row)[2:]
        else:

            def next_row(values):
                x, weights, *sums = taps_of_row(values)
                return [w.at(x, layer.dilation[0] * frame.pitch), w.at(weights, kw), *sums]

            sums = w.fold(kh, [x, weights, *sums], next_row)[2:]
        return [w.at(x, frame.plane), w.at(weights, kh * kw), *sums]

    zeros = [w.number(0.0)] * (tile.channels * tile.rows * tile.vectors)
    return w.fold(layer.depth, [x, weights, *zeros], rows_of_channel)[2:]


def _forward_store(w: _Writer, tile: Tile, place: Place, sums: list[Value]) -> None:
    values = iter(sums)
    for c in range(tile.channels):
        for r in range(tile.rows):
            for v in range(tile.vectors):
                column = v * tile.lanes
                count = min(tile.lanes, w.layer.out[1] - column)
                place.store(next(values), count, (c, r, column))


# ------------------------------------------------------------------------------------------------
# weight gradient


class WeightTile(NamedTuple):
    """``channels`` x ``taps`` of one kernel row, summed over ``images`` at a time, or ``rows``."""

    lanes: int
    channels: int
    taps: int
    images: int
    rows: int


def weight_frames(layer: Layer, lanes: int) -> tuple[Frame, Frame]:
    columns = column_vectors(layer, lanes) * lanes
    return input_frame(layer, columns, False), cotangent_frame(layer, columns, 0)


def _weight_parts(layer: Layer, tile: WeightTile) -> list[int]:
    """Elements of the parts of the scratch: inputs and cotangents."""
    frames = weight_frames(layer, tile.lanes)
    return [0 if f.direct else rounded(f.size * tile.images, tile.lanes) for f in frames]


def weight_scratch(layer: Layer, tile: WeightTile) -> int:
    return max(1, sum(_weight_parts(layer, tile)))


def weight_text(compiler: Machine, layer: Layer, tile: WeightTile) -> str:
    """``kernel(g, x, sums, scratch, first, last, per_chunk, batch)``.

    Images are summed in chunks that do not depend on the number of threads. ``sums`` is (chunks,
    groups, tiles of channels, input channels, kernel rows, channels of a tile, kernel columns), so
    that a tile writes to one place; chunks from ``first`` to ``last`` are added to.
    """
    w = _Writer(compiler, layer, tile.lanes, "g x sums scratch", "first last per_chunk batch")
    g, x, sums, scratch = w.data
    first, last, per_chunk, batch = w.integers
    frames = weight_frames(layer, tile.lanes)
    sizes = _weight_parts(layer, tile)
    if sum(sizes):
        w.clear(scratch, sum(sizes))
    with w.code.loop(first, last) as chunk:
        begin = chunk * per_chunk
        end = w.smaller(begin + per_chunk, batch)
        total = w.at(sums, chunk * (layer.filters * layer.taps))
        with w.code.loop(begin, end + (tile.images - 1), tile.images) as n:
            images = w.smaller(end - n, tile.images) if tile.images > 1 else 1
            x_images = w.at(x, n * (layer.channels * layer.image[0] * layer.image[1]))
            g_images = w.at(g, n * (layer.filters * layer.out[0] * layer.out[1]))
            x_images = _gathered(w, frames[0], x_images, scratch, images)
            g_images = _gathered(w, frames[1], g_images, w.at(scratch, sizes[0]), images)
            with w.repeat(-(-layer.out[0] // tile.rows)) as band:
                start = band * tile.rows
                rows = layer.out[0]
                if tile.rows < rows:
                    rows = w.smaller(rows - start, tile.rows)
                x_rows = w.at(x_images, start * (layer.stride[0] * frames[0].pitch))
                g_rows = w.at(g_images, start * frames[1].pitch)
                _add_images(w, tile, frames, x_rows, g_rows, total, images, rows)
    return w.text()


def _gathered(w: _Writer, frame: Frame, images: Value, scratch: Value, count) -> Value:
    """Where ``count`` images lie one after the other in their frames."""
    if frame.direct:
        return images
    size = frame.channels * frame.image[0] * frame.image[1]
    with w.repeat(count) as i:
        _copy_image(w, frame, w.at(images, i * size), w.at(scratch, i * frame.size))
    return scratch


def _add_images(w, tile, frames, x, g, sums, images, rows) -> None:
    """Add the products of some images, or of some rows of one, to the sums of every weight."""
    layer, (x_frame, g_frame) = w.layer, frames
    kh, kw = layer.kernel
    tiles = layer.width // tile.channels
    with (
        w.repeat(layer.groups) as group,
        w.repeat(tiles) as k,
        w.repeat(layer.depth) as c,
        w.repeat(kh) as row,
    ):
        channel = group * layer.width + k * tile.channels
        x_plane = (group * layer.depth + c) * x_frame.plane
        x_plane += row * (layer.dilation[0] * x_frame.pitch)
        x_plane, g_plane = w.at(x, x_plane), w.at(g, channel * g_frame.plane)
        place = ((group * tiles + k) * layer.depth + c) * kh + row
        place = w.at(sums, place * (tile.channels * kw))
        parts = pieces(kw, tile.taps)
        for taps in parts:
            totals = _weight_sums(w, tile, frames, taps, x_plane, g_plane, images, rows)
            if len(parts) == 1:
                _add_lanes(w, totals, place)
            else:
                for i in range(tile.channels):
                    own = totals[i * len(taps) : (i + 1) * len(taps)]
                    _add_lanes(w, own, w.at(place, i * kw + taps.start))


def _weight_sums(w, tile, frames, taps, x, g, images, rows) -> list[Value]:
    """For every channel and tap a vector whose lanes add up to what the images contribute."""
    layer, (x_frame, g_frame) = w.layer, frames
    vectors = column_vectors(layer, tile.lanes)

    def columns(values: list[Value], v: int = 0) -> list[Value]:
        x, g, *totals = values
        factors = [
            partial(w.vector, g, c * g_frame.plane + v * tile.lanes) for c in range(tile.channels)
        ]
        inputs = [
            partial(w.vector, x, _column(layer, x_frame, tap) + v * tile.lanes) for tap in taps
        ]
        return [x, g, *w.products(factors, inputs, totals)]

    def row(values: list[Value]) -> list[Value]:
        x, g, *totals = values
        if vectors * len(totals) <= UNROLLED // 2:
            for v in range(vectors):
                totals = columns([x, g, *totals], v)[2:]
        else:

            def next_vector(values):
                x, g, *totals = columns(values)
                return [w.at(x, tile.lanes), w.at(g, tile.lanes), *totals]

            totals = w.fold(vectors, [x, g, *totals], next_vector)[2:]
        return [w.at(x, layer.stride[0] * x_frame.pitch), w.at(g, g_frame.pitch), *totals]

    def image(values: list[Value]) -> list[Value]:
        x, g, *totals = values
        totals = w.fold(rows, [x, g, *totals], row)[2:]
        return [w.at(x, x_frame.size), w.at(g, g_frame.size), *totals]

    # from zero: sums of sums lose a third of what one long chain loses
    zeros = [w.number(0.0)] * (tile.channels * len(taps))
    return w.fold(images, [x, g, *zeros], image)[2:]


def _add_lanes(w: Writer, vectors: list[Value], place: Value) -> None:
    """Add the sum of the lanes of every vector to neighbouring elements of memory."""
    for start in range(0, len(vectors), w.lanes):
        values = vectors[start : start + w.lanes]
        count = len(values)
        total = w.vector(place, start, count) + w.first_of(w.lane_sums(values), count)
        w.store(total, place, start)


# ------------------------------------------------------------------------------------------------
# input gradient


class InputTile(NamedTuple):
    """``taps`` of one kernel row x ``rows`` x ``vectors``."""

    lanes: int
    taps: int
    rows: int
    vectors: int


# Bytes of weights from which they are packed: half an L1 cache.
PACKED = 16 << 10


class Weights(NamedTuple):
    """Distances between the weights an input gradient reads, from one to the next of each kind.

    It goes through output channels innermost. Large weights are packed to lie in that order: one
    line of a cache per output channel otherwise, from wherever (64 channels, 3x3: 14 or 30 ms,
    depending on the addresses the operating system gave).
    """

    packed: bool
    group: int
    input: int
    row: int
    output: int


def input_gradient_weights(layer: Layer) -> Weights:
    height, width = layer.kernel
    group = layer.width * layer.taps
    size = 8 if layer.element == "double" else 4
    if group * size < PACKED:
        return Weights(False, group, height * width, width, layer.taps)
    return Weights(True, group, layer.width * height * width, layer.width * width, width)


class RowPhase(NamedTuple):
    """Rows of an image that the same kernel rows reach: with a stride of s there are s kinds.

    Image row ``first + t * stride`` takes kernel row ``tap + m * tap_step`` times cotangent row
    ``row + t - m * row_step``.
    """

    first: int
    count: int
    row: int
    tap: int
    taps: int  # kernel rows; none where windows leave gaps
    tap_step: int
    row_step: int


def row_phases(layer: Layer) -> list[RowPhase]:
    stride, dilation, top = layer.stride[0], layer.dilation[0], layer.start[0]
    common = gcd(stride, dilation)
    phases = []
    for phase in range(stride):
        first = (phase - top) % stride
        count = len(range(first, layer.image[0], stride))
        taps = [k for k in range(layer.kernel[0]) if k * dilation % stride == phase]
        tap = taps[0] if taps else 0
        row = (first + top) // stride - tap * dilation // stride
        if count:
            steps = (stride // common, dilation // common)
            phases.append(RowPhase(first, count, row, tap, len(taps), *steps))
    return phases


def input_gradient_frame(layer: Layer, tile: InputTile) -> tuple[Frame, int]:
    """The frame of the cotangent, and its rows of zeros above and below."""
    above = (layer.kernel[0] - 1) * layer.dilation[0] // layer.stride[0]
    below = (layer.image[0] - 1 + layer.start[0]) // layer.stride[0] - (layer.out[0] - 1)
    margin = max(above, below)
    columns = rounded(layer.out[1], tile.vectors * tile.lanes)
    return cotangent_frame(layer, columns, margin), margin


def _buffer_columns(layer: Layer, tile: InputTile) -> int:
    """Columns of one phase of the buffer of a row of the result, borders included."""
    step, columns = layer.stride[1], rounded(layer.out[1], tile.vectors * tile.lanes)
    reach = rounded((layer.kernel[1] - 1) * layer.dilation[1] // step, tile.lanes)
    needed = (layer.image[1] - 1 + layer.start[1]) // step + 1
    return max(columns + reach, rounded(needed, tile.lanes))


def input_gradient_scratch(layer: Layer, tile: InputTile) -> int:
    frame, _ = input_gradient_frame(layer, tile)
    row_size = layer.stride[1] * _buffer_columns(layer, tile)
    sorted_row = rounded(layer.image[1], tile.lanes) if layer.stride[1] > 1 else 0
    return rounded(frame.size, tile.lanes) + tile.rows * row_size + sorted_row


def input_gradient_text(
    compiler: Machine, layer: Layer, tile: InputTile, epilogue: Epilogue = PLAIN
) -> str:
    """``kernel(g, w, <arrays of the epilogue>, scratch, <its numbers>, first image, last
    image)``."""
    epilogue.demand(tile.rows)
    w = _with_epilogue(compiler, layer, tile.lanes, "g w", epilogue)
    g, weights, *_, scratch = w.data
    first, last = w.integers
    frame, margin = input_gradient_frame(layer, tile)
    image_size = rounded(frame.size, tile.lanes)
    row_size = layer.stride[1] * _buffer_columns(layer, tile)
    buffer = w.at(scratch, image_size)
    w.clear(scratch, image_size)
    g_inside = w.at(scratch, margin * frame.pitch)
    order = input_gradient_weights(layer)
    results = Results(compiler, w, epilogue, (layer.channels, *layer.image))
    with w.code.loop(first, last) as n:
        _copy_image(w, frame, w.at(g, n * (layer.filters * layer.out[0] * layer.out[1])), scratch)
        for phase in row_phases(layer):
            rows = min(tile.rows, phase.count)
            with (
                w.repeat(layer.groups) as group,
                w.starts(phase.count, rows) as t,
                w.repeat(layer.depth) as c,
            ):
                w.clear(buffer, rows * row_size)
                if phase.taps:
                    g_plane = w.at(g_inside, group * (layer.width * frame.plane))
                    taps = w.at(weights, group * order.group + c * order.input)
                    sizes = tile._replace(rows=rows)
                    _add_rows(w, sizes, frame, phase, g_plane, taps, t + phase.row, buffer)
                for r in range(rows):
                    columns = w.at(buffer, r * row_size)
                    source = _in_order(w, tile, columns, w.at(buffer, tile.rows * row_size))
                    row = (t + r) * layer.stride[0] + phase.first
                    _store_row(w, results, source, n, group * layer.depth + c, row)
    return w.text()


def _in_order(w, tile: InputTile, buffer: Value, row: Value) -> Value:
    """Where the columns of a row lie in order: in the buffer, where they are sorted by phases, if
    there is one phase, else in ``row``."""
    layer = w.layer
    (_, width), (_, left), step = layer.image, layer.start, layer.stride[1]
    if step == 1:
        return w.at(buffer, left)
    for phase in range(step):
        first = (phase - left) % step
        count = len(range(first, width, step))
        if count:
            source = phase * _buffer_columns(layer, tile) + (first + left) // step
            with w.repeat(count) as i:
                w.store(w.vector(buffer, i + source, 1), row, i * step + first)
    return row


def _store_row(w, results: Results, source: Value, *row: Value) -> None:
    """A row of the result; the last vector may overlap the one before."""
    width = w.layer.image[1]
    with w.starts(width, w.lanes) as column:
        place = w.at(source, column)
        if width < w.lanes:
            results.at(*row, column).store(w.some(place, 0, width), width)
        else:
            results.at(*row, column).store(w.vector(place), w.lanes)


def _add_rows(w, tile, frame, phase: RowPhase, g: Value, weights: Value, row: Value, buffer):
    """Add what all output channels and taps contribute to some rows of one input channel.

    ``row`` is the cotangent row that the first kernel row of the phase meets."""
    layer = w.layer
    begin, end = w.code.integer(0), w.code.integer(phase.taps)
    if phase.row_step == 1:  # leave out kernel rows that meet no row of the cotangent
        begin = w.smaller(w.larger(row - (layer.out[0] - 1), 0), phase.taps - 1)
        end = w.larger(w.smaller(row + tile.rows, phase.taps), begin + 1)
    g = w.at(g, (row - begin * phase.row_step) * frame.pitch)
    weights = w.at(
        weights, (begin * phase.tap_step + phase.tap) * input_gradient_weights(layer).row
    )
    vectors = tile.vectors * tile.lanes
    with w.starts(frame.columns, vectors) as column:
        for taps in pieces(layer.kernel[1], tile.taps):
            sums = _tap_sums(w, tile, frame, phase, taps, w.at(g, column), weights, end - begin)
            _shift_and_add(w, tile, taps, sums, w.at(buffer, column))


def _tap_sums(w, tile, frame, phase, taps, g, weights, kernel_rows: Value) -> list[Value]:
    """For every tap, row and vector: the sum over kernel rows and output channels."""
    layer, order = w.layer, input_gradient_weights(w.layer)

    def next_channel(values: list[Value]) -> list[Value]:
        g, weights, *sums = values
        inputs = [
            partial(w.vector, g, r * frame.pitch + v * tile.lanes)
            for r in range(tile.rows)
            for v in range(tile.vectors)
        ]
        factors = [partial(w.broadcast, weights, tap) for tap in taps]
        sums = w.products(factors, inputs, sums)
        return [w.at(g, frame.plane), w.at(weights, order.output), *sums]

    def next_row(values: list[Value]) -> list[Value]:
        g, weights, *sums = values
        sums = w.fold(layer.width, [g, weights, *sums], next_channel)[2:]
        g = w.at(g, -phase.row_step * frame.pitch)
        return [g, w.at(weights, phase.tap_step * order.row), *sums]

    zeros = [w.number(0.0)] * (len(taps) * tile.rows * tile.vectors)
    return w.fold(kernel_rows, [g, weights, *zeros], next_row)[2:]


def _shift_and_add(w, tile: InputTile, taps, sums: list[Value], buffer: Value) -> None:
    """Add the sums of every tap to the buffer, as many columns to the right as the tap lies."""
    zero, lanes, step = w.number(0.0), tile.lanes, w.layer.stride[1]
    pitch = _buffer_columns(w.layer, tile)
    for r in range(tile.rows):
        shifted: dict[int, Value] = {}
        for t, tap in enumerate(taps):
            at = (t * tile.rows + r) * tile.vectors
            vectors = [zero, *sums[at : at + tile.vectors], zero]
            offset, phase = divmod(tap * w.layer.dilation[1], step)
            whole, rest = divmod(offset, lanes)
            for v in range(tile.vectors + (rest > 0)):
                value = vectors[v + 1]
                if rest:
                    places = range(lanes - rest, 2 * lanes - rest)
                    value = w.shuffle(vectors[v], vectors[v + 1], places)
                place = (r * step + phase) * pitch + (v + whole) * lanes
                shifted[place] = shifted[place] + value if place in shifted else value
        for place, value in shifted.items():
            w.store(w.vector(buffer, place) + value, buffer, place)
