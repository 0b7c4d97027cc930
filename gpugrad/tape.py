"""TensorFlow's way to ask for gradients: ``GradientTape``, over the records of ``backward``."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Any

from . import creation, functions, tree
from .autograd.engine import grad
from .config import grad_mode
from .tensor import Tensor, wrap

__all__ = ["GradientTape"]


class _Active(threading.local):
    """The tapes of a thread that are recording, the outermost first."""

    def __init__(self):
        self.tapes: list[GradientTape] = []


_active = _Active()


class GradientTape:
    """Record what is computed in a ``with`` block and differentiate it.

    Tensors that require a gradient are watched by themselves (unless ``watch_accessed_variables``
    is off), others with ``watch``, which ends with the block. ``gradient`` may be called once, or
    as often as one likes if the tape is ``persistent``. Inside the block of another tape it is
    recorded itself: second derivatives. The signature is TensorFlow's ``tf.GradientTape``; records
    of tensors that require gradients made before the block count, too.

    >>> import gpugrad as gg
    >>> x = gg.tensor(3.0)
    >>> with gg.GradientTape() as outer:
    ...     outer.watch(x)
    ...     with gg.GradientTape() as tape:
    ...         tape.watch(x)
    ...         y = x * x * x
    ...     slope = tape.gradient(y, x)
    >>> slope.item(), outer.gradient(slope, x).item()
    (27.0, 18.0)
    """

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True):
        self._persistent = persistent
        self._watch_accessed_variables = watch_accessed_variables
        self._recording: Any = None
        self._used = False
        # by id, which the reference to the tensor keeps from being given to another:
        # the tensor, the record it had, and whether this tape made that
        self._watched: dict[int, tuple[Tensor, Any, bool]] = {}

    def __enter__(self) -> GradientTape:
        if self._recording is not None:
            raise ValueError("Tape is still recording, This can happen if you try to re-enter it.")
        self._watched, self._used = {}, False  # entered again, it begins anew
        self._recording = grad_mode(True)
        self._recording.__enter__()
        _active.tapes.append(self)
        return self

    def __exit__(self, *exc) -> None:
        _active.tapes.remove(self)
        recording, self._recording = self._recording, None
        recording.__exit__(*exc)
        for tensor, node, made in self._watched.values():
            if made and tensor._node is node:
                tensor._node = None

    def watch(self, tensor) -> None:
        """Record what is computed from a tensor, or from each of a nested structure.

        Raises RuntimeError outside of the ``with`` block, TypeError for what is no tensor, and
        RuntimeError for integers.
        """
        if self._recording is None:
            raise RuntimeError("tape.watch() outside of the tape's `with` block watches nothing")
        for t in tree.flatten(tensor)[0]:
            if not isinstance(t, Tensor):
                raise TypeError(f"tape.watch() takes tensors, got {type(t).__name__}")
            if id(t) in self._watched:
                continue
            made = t._node is None
            t.requires_grad_()
            self._watched[id(t)] = (t, t._node, made)

    def watched_variables(self) -> tuple[Tensor, ...]:
        """The tensors given to ``watch``, in order."""
        return tuple(tensor for tensor, _, _ in self._watched.values())

    @contextmanager
    def stop_recording(self):
        """Record nothing for the length of a block, on any tape."""
        if self._recording is None:
            raise ValueError("Tape is not recording; stop_recording() belongs into its block")
        with grad_mode(False):
            yield

    def reset(self) -> None:
        """Forget everything, as if the block began here."""
        if self._recording is None:
            raise ValueError("Tape is not recording; reset() belongs into its block")
        for tensor, node, made in self._watched.values():
            if made and tensor._node is node:
                tensor._node = None
        self._watched.clear()
        self._used = False

    def gradient(
        self,
        target,
        sources,
        output_gradients=None,
        unconnected_gradients: str = "none",
    ):
        """Gradients of the sum of ``target`` (a tensor or a structure of them) for ``sources``.

        The result has the structure of ``sources``, with None (or zeros, with
        ``unconnected_gradients="zero"``) where the target does not depend on one.
        ``output_gradients`` are the cotangents of the targets, instead of ones.

        Raises RuntimeError on the second call, unless the tape is persistent.
        """
        targets = tree.flatten(target)[0]
        flat, unflatten = tree.flatten(sources)
        if output_gradients is None:
            seeds = [creation.ones_like(t.detach()) for t in targets]
        else:
            seeds = [creation.as_tensor(g) for g in tree.flatten(output_gradients)[0]]
        if len(seeds) != len(targets):
            raise ValueError(f"got {len(seeds)} output_gradients for {len(targets)} targets")
        found = self._gradients(targets, flat, seeds, self._persistent, unconnected_gradients)
        self._used = not self._persistent
        return unflatten(found)

    def jacobian(self, target, sources, unconnected_gradients: str = "none"):
        """Jacobians of one tensor: of shape (*target.shape, *source.shape) for every source, by one
        backward pass for each element of the target.

        >>> import gpugrad as gg
        >>> x = gg.tensor([1.0, 2.0])
        >>> with gg.GradientTape() as tape:
        ...     tape.watch(x)
        ...     y = x * x
        >>> tape.jacobian(y, x)
        tensor([[2., 0.],
                [0., 4.]])
        """
        flat, unflatten = tree.flatten(sources)
        size = target.numel()
        rows = []
        for i in range(size):
            seed = creation.zeros(size, dtype=target.dtype, device=target.device)
            seed[i] = 1.0
            retain = self._persistent or i + 1 < size
            seed = functions.reshape(seed, *target.shape)
            rows.append(self._gradients([target], flat, [seed], retain, unconnected_gradients))
        self._used = not self._persistent
        return unflatten([self._stacked(target, s, k, rows) for k, s in enumerate(flat)])

    def _stacked(self, target, source, k: int, rows):
        shape = (*target.shape, *source.shape)
        if not rows:
            return creation.zeros(*shape, dtype=source.dtype, device=source.device)
        if rows[0][k] is None:
            return None
        return functions.reshape(functions.stack([row[k] for row in rows]), *shape)

    def _gradients(self, targets, sources, seeds, retain: bool, unconnected: str) -> list:
        if unconnected not in ("none", "zero"):
            raise ValueError(
                f"Unknown value for unconnected_gradients: {unconnected!r}; use 'none' or 'zero'"
            )
        if self._used:
            raise RuntimeError(
                "A non-persistent GradientTape can only be used to compute one set of gradients "
                "(or jacobians); use GradientTape(persistent=True)"
            )
        live = [(t, g) for t, g in zip(targets, seeds, strict=True) if t._node is not None]
        variables = [self._variable(s) for s in sources]
        wanted = [v for v in variables if v is not None]
        found: dict[int, Any] = {}
        if live and wanted:
            recorded = bool(_active.tapes)
            results = grad(
                [t for t, _ in live],
                wanted,
                [g for _, g in live],
                retain_graph=retain or recorded,
                create_graph=recorded,
                allow_unused=True,
            )
            found = {id(v): g for v, g in zip(wanted, results, strict=True)}
        gradients = [None if v is None else found.get(id(v)) for v in variables]
        if unconnected == "zero":
            gradients = [
                creation.zeros_like(s.detach()) if g is None else g
                for s, g in zip(sources, gradients, strict=True)
            ]
        return gradients

    def _variable(self, source) -> Tensor | None:
        """A tensor with the record that the source had in the block; None if there is none."""
        if not isinstance(source, Tensor):
            raise TypeError(f"sources must be tensors, got {type(source).__name__}")
        watched = self._watched.get(id(source))
        if watched is not None:
            stand_in = wrap(source.array)
            stand_in._node = watched[1]
            return stand_in
        if source._node is None or (source.is_leaf and not self._watch_accessed_variables):
            return None
        return source
