"""The text of a graph's parts; ``parse.py`` reads it back.

Metadata are literals: numbers, strings, ``None``, ``...``, tuples, lists, ``slice(1, None, 2)``,
``{name: value}``, dtypes by name and operations as ``@name``. Expressions name what they use twice:

    {x0, x1 -> t0 = exp(x0); mul(t0, x1), t0}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..backend.numpy import xp as np
from ..codegen.expr import Expr, topological
from ..ops.core import Op

# Elements of a constant that are written out.
WRITTEN_OUT = 16


def literal(value) -> str:
    """Metadata as text."""
    if isinstance(value, Op):
        return f"@{value.name}"
    if isinstance(value, np.dtype):
        return str(value)
    if value is Ellipsis:
        return "..."
    if isinstance(value, slice):
        return f"slice({literal(value.start)}, {literal(value.stop)}, {literal(value.step)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {literal(v)}' for k, v in value.items())}}}"
    if value.__class__ is tuple:
        parts = [literal(v) for v in value]
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if value.__class__ is list:
        return f"[{', '.join(map(literal, value))}]"
    return repr(value)


def parameters(params: dict) -> str:
    """``[axes=(1, 0), keepdims=True]``; nothing if there are none."""
    return f"[{', '.join(f'{k}={literal(v)}' for k, v in params.items())}]" if params else ""


def function_name(function) -> str:
    """``gpugrad.ops.nn.one_hot``: where a function is found."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(function)


def program(inputs: Sequence[str], outputs: Sequence[tuple[str, Expr]]) -> str:
    """Expressions with what is said before each, in braces."""
    order = topological([e for _, e in outputs])
    uses = Counter(
        id(a) for e in order if e.op not in ("input", "const") for a in e.args
    )  # fmt: skip
    uses.update(id(e) for _, e in outputs)
    taken = {e.args[0] for e in order if e.op == "input"}
    texts: dict[int, str] = {}
    lines: list[str] = []
    for e in order:
        if e.op in ("input", "const"):
            texts[id(e)] = str(e.args[0]) if e.op == "input" else repr(e.args[0])
            continue
        text = f"{e.op}({', '.join(texts[id(a)] for a in e.args)})"
        if uses[id(e)] > 1:
            name = f"t{len(lines)}"
            while name in taken:
                name += "_"
            lines.append(f"{name} = {text}; ")
            text = name
        texts[id(e)] = text
    results = ", ".join(f"{before}{texts[id(e)]}" for before, e in outputs)
    return f"{{{', '.join(inputs)} -> {''.join(lines)}{results}}}"


def constant(v, array) -> str:
    """The numbers of a small constant, the one number of a uniform one, the name of another."""
    if array.__class__ is np.ndarray and array.dtype.kind in "biuf":
        flat = array.reshape(-1)
        if array.size > 1 and all(n == flat[:1].tobytes() for n in _elements(flat)):
            return f"constant {literal(flat[0].item())}"
        if array.size <= WRITTEN_OUT:
            return f"constant {literal(flat.tolist())}"
    return f"constant {v!r}"


def _elements(flat) -> Iterator[bytes]:
    """The bytes of each element, so that -0.0 is not 0.0."""
    data, size = flat.tobytes(), flat.itemsize
    return (data[k : k + size] for k in range(0, len(data), size))
