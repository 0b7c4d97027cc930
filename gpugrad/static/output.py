"""What a recorded call writes to the terminal, so that a replay writes it, too.

While a call is recorded, ``sys.stdout`` and ``sys.stderr`` are watched, and tensors and numbers of
the program that are formatted tell the recorder their text. Where every such text is found in what
was written, the output is fixed words with values of the graph between them. Two recordings with
other values and the same words confirm it.

Text that goes elsewhere (into a file, a list, the handler of a logger) cannot be followed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .graph import Value

STREAMS = ("stdout", "stderr")


class Shown(NamedTuple):
    """A value of the program that was formatted: ``render(array)`` gives its text."""

    text: str
    value: Value
    array: Any  # a copy, as it was then
    render: Callable[[Any], str]
    line: Iterable  # see errors.Line


class Piece(NamedTuple):
    """A part of the output of a call: words, a value (by its place among the results), or a
    flush."""

    stream: str
    words: str | None = None
    result: int = -1
    render: Callable[[Any], str] | None = None


class Ambiguous(Exception):
    """Another call may show which part of the output is a value."""


class Lost(Exception):
    """A text went where it is not seen; with the reason and the line."""


class _Stream:
    """Stands in for a stream: notes what this thread writes to it, and passes it on if told to."""

    def __init__(self, name: str, stream, written: list[tuple[str, str | None]], shows: bool):
        self._name, self._stream, self._written, self._shows = name, stream, written, shows
        self._thread: int | None = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._thread:
            if text:
                self._written.append((self._name, text))
            if not self._shows:
                return len(text)
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if threading.get_ident() == self._thread:
            self._written.append((self._name, None))
        self._stream.flush()

    def __getattr__(self, attribute: str):
        return getattr(self._stream, attribute)

    def leave(self) -> None:
        """Be the stream alone from now on: somebody may have kept this object."""
        self._thread = None
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self._stream)


class Output:
    """What this thread writes in a ``with`` block: the name of a stream and a text, or None for a
    flush. ``shows`` lets it be seen."""

    def __init__(self, shows: bool = True):
        self.written: list[tuple[str, str | None]] = []
        self._shows = shows
        self._streams: list[_Stream] = []

    def __enter__(self) -> Output:
        for name in STREAMS:
            stream = getattr(sys, name)
            if stream is not None:  # as in programs without a terminal
                self._streams.append(_Stream(name, stream, self.written, self._shows))
                setattr(sys, name, self._streams[-1])
        return self

    def __exit__(self, *exception) -> None:
        for stream in self._streams:
            stream.leave()

    def pieces(self, shown: Sequence[Shown], results: Sequence[Value]) -> list[Piece]:
        """The output, with the texts of values cut out. Raises ``Ambiguous`` or ``Lost``."""
        pieces = _joined(self.written)
        texts: dict[str, Shown] = {}
        for s in shown:
            other = texts.setdefault(s.text, s)
            if other.value is not s.value or other.render != s.render:
                raise Ambiguous(f"two values of the program are printed as {s.text!r}")
        for text in sorted(texts, key=len, reverse=True):  # a text may be a part of a longer one
            s = texts[text]
            found = sum(_count(p.words, text) for p in pieces)
            if not found:
                raise Lost(f"the text {text!r:.40} of a value leaves the program, and is not "
                           "written to the terminal", s.line)  # fmt: skip
            if found != sum(s.text == text for s in shown):
                raise Ambiguous(f"the text {text!r:.40} of a value is found elsewhere, too")
            place = results.index(s.value)
            pieces = [q for p in pieces for q in _cut(p, s, place)]
        return pieces


def _joined(written: Sequence[tuple[str, str | None]]) -> list[Piece]:
    """What was written to one stream in a row as one text."""
    joined: list[Piece] = []
    for name, text in written:
        last = joined[-1] if joined else Piece("")
        if text is not None and last.words is not None and last.stream == name:
            joined[-1] = Piece(name, last.words + text)
        else:
            joined.append(Piece(name, text))
    return joined


def _count(words: str | None, text: str) -> int:
    """How often a text is found, overlapping ones included."""
    found, at = 0, -1
    while words is not None and (at := words.find(text, at + 1)) >= 0:
        found += 1
    return found


def _cut(piece: Piece, shown: Shown, place: int) -> Iterator[Piece]:
    """Words, with every text of a value replaced by the value."""
    if piece.words is None:
        yield piece
        return
    for k, words in enumerate(piece.words.split(shown.text)):
        if k:
            yield Piece(piece.stream, None, place, shown.render)
        if words:
            yield Piece(piece.stream, words)


def write(pieces: Sequence[Piece], arrays: Sequence) -> None:
    """Write what a call wrote, with the values of now."""
    for piece in pieces:
        stream = getattr(sys, piece.stream)
        if stream is None:
            continue
        if piece.render is not None:
            stream.write(piece.render(arrays[piece.result]))
        elif piece.words is not None:
            stream.write(piece.words)
        else:
            stream.flush()
