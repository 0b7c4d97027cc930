"""What optimizers share: parameter groups, per-parameter state, saving and loading."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from operator import is_
from typing import Any, NamedTuple

import gpugrad as gg


class Optimizer:
    """Base class: holds ``param_groups`` and ``state``, in torch's format.

    A subclass passes the defaults of its options to ``__init__`` and defines ``_update(group)``
    (or overrides ``step``). Parameters whose ``.grad`` is None are left alone.

    The options ``foreach`` and ``fused`` of its subclasses are torch's and may be None, True or
    False, not both True (RuntimeError). Updates are always fused over lists of parameters: the
    result and the speed are the same with any of them.

    Arithmetic is in float32 for 16-bit parameters. ``master_weights=True`` also keeps a float32
    copy of each of them in its state (``master``), and the rest of the state in float32: small
    steps add up there, and the parameter is the copy rounded.

    ``capturable=True`` counts the steps of CUDA parameters on their device, as a captured graph
    needs it. So does a :class:`gpugrad.amp.GradScaler`, which sets ``found_inf``: a tensor of one
    element that makes ``step`` leave everything as it is unless it is zero. On CUDA the kernels ask
    it, and the host does not wait. The learning rate may be a zero-dimensional tensor.
    """

    found_inf: gg.Tensor | None = None
    # While a compiled program is recorded: the updates that were made. While it asks for numbers:
    # those updates, and the answers so far.
    _recording: list[_Run] | None = None
    _recorded: list[_Run] | None = None
    _answers: list[float] | None = None

    @property
    def skips_by_itself(self) -> bool:
        """Whether ``found_inf`` is looked at: not by subclasses with a ``step`` or an ``_update``
        of their own."""
        kind = type(self)
        return kind.step is Optimizer.step and kind._update.__module__.startswith(__package__ or "")

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], *, master_weights: bool = False
    ) -> None:
        if isinstance(params, gg.Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts, "
                f"but got {type(params).__name__}; put it in a list"
            )
        self.defaults = defaults
        self.master_weights = master_weights
        self._counts_on_device = False  # some parameter's steps
        self.state: defaultdict[gg.Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._opt_called = False  # a scheduler stepped before the optimizer warns
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    # -- stepping ----------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient.

        ``closure`` recomputes the loss and its gradients first; the loss it returns is returned.
        """
        loss = None
        if closure is not None:
            with gg.enable_grad():
                loss = closure()
        self._opt_called = True
        found = self.found_inf
        if found is not None and not found.is_cuda and found:
            return loss
        if gg.compiler.is_compiling():
            self._recorded_step()
            return loss
        for group in self.param_groups:
            self._update(group)
        return loss

    # A compiled program replays the updates of a step, not its Python. What Python does beside
    # them, counting steps and reading the learning rate, it asks for before every replay: the step
    # is run once more, with `_run` answering by numbers instead of updating.

    def _recorded_step(self) -> None:
        runs: list[_Run] = []

        def numbers() -> list[float]:
            self._answers, self._recorded = [], list(runs)
            try:
                for group in self.param_groups:
                    self._update(group)
                if self._recorded:
                    raise gg.compiler.Changed(f"{type(self).__name__} has other groups now")
                return self._answers
            except gg.compiler.Changed:
                take_back(runs[: len(runs) - len(self._recorded)])
                raise
            finally:
                self._answers = self._recorded = None

        def take_back(made: list[_Run]) -> None:
            for run in made:
                for p in run.params:
                    self._count_back(p)

        undo = lambda: take_back(runs)  # noqa: E731
        with gg.compiler.asked_before_replay(type(self).__name__, self, numbers, undo):
            self._recording = runs
            try:
                for group in self.param_groups:
                    self._update(group)
            finally:
                self._recording = None

    def _answer(self, update: Any, group: dict[str, Any], numbers: dict[str, Any]) -> None:
        """The numbers of an update for the parameters that it updated when it was recorded."""
        assert self._recorded is not None and self._answers is not None
        while self._recorded and self._recorded[0].group is group:
            run = self._recorded[0]
            device = {n: v for n, v in numbers.items() if _on_device(v)}
            if run.update not in (update, update.storing()) or not _same(device, run.device):
                raise gg.compiler.Changed(f"{type(self).__name__} has other options now")
            members = group["params"]
            if len(members) != len(run.members) or not all(map(is_, members, run.members)):
                raise gg.compiler.Changed(f"{type(self).__name__} has other parameters now")
            forgotten = any(self.state.get(p) is not s for p, s in run.states)
            if forgotten or any(s.get(n) is not t for s, n, t in run.kept):
                raise gg.compiler.Changed(f"{type(self).__name__} has other state tensors now")
            if run.counts:
                steps = {self._count(p, self.state[p], group) for p in run.params}
                if len(steps) > 1:
                    for p in run.params:
                        self._count_back(p)
                    raise gg.compiler.Changed("parameters have made different numbers of steps")
                numbers["step"] = steps.pop()
            del self._recorded[0]
            ask = run.update.host_numbers if run.by_device else run.update.values
            self._answers.extend(ask(numbers))

    def _count_back(self, p: gg.Tensor) -> None:
        """Take back one count of ``_count``."""
        step = self.state[p].get("step") if p in self.state else None
        if step is not None and not step.is_cuda:
            step.array.fill(step.array.item() - 1)

    def _update(self, group: dict[str, Any]) -> None:
        raise NotImplementedError(f"{type(self).__name__} defines neither _update nor step")

    def _run(
        self, update: Any, group: dict[str, Any], initial: Mapping[str, float], **numbers: Any
    ) -> None:
        """Apply a ``foreach`` update to the parameters of a group that have a gradient.

        Its lists are the parameters, one per name in ``initial``, and the gradients; state tensors
        that do not exist yet are filled with the value in ``initial``. ``numbers`` are its scalars,
        but for ``step``, the number of steps made with this one, if it reads it.
        """
        reads_step = "step" in update.scalars
        if self._answers is not None:
            self._answer(update, group, numbers)
            return
        for batch in self._batches(group, initial):
            if reads_step:
                numbers["step"] = batch.step
                if batch.step.__class__ is int and batch.lists[0][0].is_cuda:
                    self._check_capture(batch.step)
            made, lists = update, batch.lists
            if batch.stored:
                made, lists = update.storing(), [batch.stored, *lists]
            if self._recording is not None:
                self._recording.append(self._run_of(made, group, initial, batch, numbers))
            made(*lists, unless=self.found_inf, **numbers)

    def _run_of(self, update: Any, group, initial, batch: _Batch, numbers: dict) -> _Run:
        """What is noted of an update of a batch."""
        params = batch.stored or batch.lists[0]
        counted = batch.step.__class__ is list
        counts = not counted and (
            "step" in update.scalars or "step" in self.state.get(params[0], ())
        )
        names = [*initial, *["step"] * counted, *["master"] * bool(batch.stored)]
        states = [(p, self.state[p]) for p in params if p in self.state]
        kept = [(s, n, s[n]) for _, s in states for n in names]
        device = {n: v for n, v in numbers.items() if n != "step" and _on_device(v)}
        by_device = _on_device(self.found_inf) or any(map(_on_device, numbers.values()))
        members = list(group["params"])
        return _Run(update, group, params, counts, members, states, kept, device, by_device)

    _only_first_step_differs = False

    def _check_capture(self, step: int) -> None:
        """Raise where a CUDA graph would repeat one number of steps for ever, as torch does."""
        harmless = self._only_first_step_differs and step > 1
        if not harmless and gg.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"Attempting CUDA graph capture of step() for an instance of "
                f"{type(self).__name__} that counts its steps on the host: a replay would repeat "
                "the recorded number. Adam and AdamW take capturable=True; SGD can be captured "
                "after its first step."
            )

    def _batches(self, group: dict[str, Any], initial: Mapping[str, float]) -> Iterable[_Batch]:
        """The parameters that have a gradient, with their state, by the number of their steps.

        Almost always all have made the same number of steps: one batch.
        """
        capturable = self.found_inf is not None or group.get("capturable", False)
        if capturable or self.master_weights or self._counts_on_device:
            return self._special_batches(group, initial, capturable)
        batches: dict[int, _Batch] = {}
        compiling = gg.compiler.is_compiling()
        for p in group["params"]:
            grad = gg.compiler.gradient(p) if compiling else p.grad
            if grad is None:
                continue
            state = self.state[p]
            counter = state.get("step")
            if counter is None:
                step = self._count(p, state, group)
                if len(state) < len(initial) + ("step" in state):
                    self._start(p, state, initial, False)
            else:  # _count, written out
                count = counter.array
                step = int(count.item()) + 1
                count.fill(step)  # a fifth of the time of count += 1
                if len(state) <= len(initial):
                    self._start(p, state, initial, False)
            batch = batches.get(step)
            if batch is None:
                batch = batches[step] = _Batch(step, len(initial) + 2)
            lists = batch.lists
            lists[0].append(p)
            for k, name in enumerate(initial, 1):
                value = state[name]
                if p.is_cuda or value.is_cuda:
                    value = state[name] = beside(p, value)
                lists[k].append(value)
            lists[-1].append(grad)
        return batches.values()

    def _special_batches(
        self, group: dict[str, Any], initial: Mapping[str, float], on_device: bool
    ) -> Iterable[_Batch]:
        """The same where the device counts steps, or 16-bit parameters have master copies."""
        batches: dict[Any, _Batch] = {}
        for p in group["params"]:
            grad = gg.compiler.gradient(p)
            if grad is None:
                continue
            state = self.state[p]
            for name in ("step", "master", *initial):
                value = state.get(name)
                if value is not None and (name != "step" or value.is_cuda):
                    state[name] = beside(p, value)
            if (on_device and p.is_cuda) or self._counts_on_device:
                step = self._count_on_device(p, state, group, on_device)
            else:
                step = self._count(p, state, group)
            counted = step.__class__ is gg.Tensor
            master = self.master_weights and gg.dtypes.is_half(p.dtype)
            self._start(p, state, initial, master)
            key = (None if counted else step, master)
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = _Batch([] if counted else step, len(initial) + 2)
            if counted:
                batch.step.append(step)
            if master:
                batch.stored.append(p)
                p = state["master"]
            values = [p, *[state[name] for name in initial], grad]
            for tensors, value in zip(batch.lists, values, strict=True):
                tensors.append(value)
        for batch in batches.values():
            if batch.step.__class__ is list:
                advance()(batch.step, unless=self.found_inf)
        return batches.values()

    def _count(self, p: gg.Tensor, state: dict[str, Any], group: dict[str, Any]) -> int:
        """Advance ``state["step"]``, a float32 tensor on the CPU as in torch; the new number."""
        step = state.get("step")
        if step is None:
            step = state["step"] = gg.tensor(0.0, dtype=gg.float32)
        number = int(step.array.item()) + 1
        step.array.fill(number)
        return number

    def _count_on_device(
        self, p: gg.Tensor, state: dict[str, Any], group: dict[str, Any], on_device: bool
    ) -> Any:
        """The tensor with the number of steps made, yet to be advanced; the number with this one if
        it is not on a device and need not be."""
        step = state.get("step")
        if step is None:
            step = state["step"] = gg.zeros((), dtype=gg.float32, device=p.device)
        elif on_device and p.is_cuda and not step.is_cuda:
            step = state["step"] = gg.full((), step.array.item(), dtype=gg.float32, device=p.device)
        if not step.is_cuda:
            return self._count(p, state, group)
        self._counts_on_device = True
        return step

    def _start(
        self, p: gg.Tensor, state: dict[str, Any], initial: Mapping[str, float], master: bool
    ) -> None:
        """Add the state that is missing."""
        like = p.detach()
        if master:
            if "master" not in state:
                state["master"] = like.float()
            like = state["master"]
        for name, value in initial.items():
            if state.get(name) is None:
                state[name] = gg.full_like(like, value)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients; ``set_to_none=False`` fills them with zeros in place instead."""
        on_cuda = []
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    gg.compiler.forget_gradient(p)
                elif gg.compiler.gradient(p) is not None:
                    if p.grad.requires_grad:
                        p.grad = p.grad.detach()
                    if p.grad.is_cuda:
                        on_cuda.append(p.grad)
                    else:
                        p.grad.zero_()
        if on_cuda:
            zero()(on_cuda)

    # -- parameter groups --------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group ``{"params": [...], option: value, ...}``; other options get their defaults.

        Raises:
            TypeError: not a dict, parameters in a set, or something that is not a tensor.
            ValueError: a computed tensor, or a parameter that another group has.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params = param_group["params"]
        if isinstance(params, gg.Tensor):
            params = [params]
        elif isinstance(params, set):
            raise TypeError(
                "optimizer parameters need to be organized in ordered collections, but the "
                "ordering of tensors in sets will change between runs. Please use a list instead."
            )
        params = list(params)
        named = [p for p in params if isinstance(p, tuple)]
        if named:
            if len(named) != len(params):
                raise ValueError(
                    "all optimizer params should be with/without names. "
                    "Some param names are missing"
                )
            param_group["param_names"] = [name for name, _ in named]
            params = [p for _, p in named]
        param_group["params"] = params
        self._check_params(param_group)
        for name, default in self.defaults.items():
            param_group.setdefault(name, default)
        self.param_groups.append(param_group)

    def _check_params(self, param_group: dict[str, Any]) -> None:
        params = param_group["params"]
        for p in params:
            if not isinstance(p, gg.Tensor):
                raise TypeError(
                    "optimizer can only optimize Tensors, but one of the params is "
                    f"{type(p).__name__}"
                )
            if not p.is_leaf:
                raise ValueError(
                    f"can't optimize a non-leaf Tensor (shape {tuple(p.shape)}): it is computed "
                    "from others; optimize those, or its .detach().requires_grad_()"
                )
        if len(params) != len(set(params)):
            warnings.warn(
                "optimizer contains a parameter group with duplicate parameters; "
                "each is updated as often as it is listed",
                stacklevel=4,
            )
        for group in self.param_groups:
            if ("param_names" in param_group) != ("param_names" in group):
                which = "with" if "param_names" in param_group else "without"
                raise ValueError(
                    "all optimizer param groups should be with/without names. "
                    f"cannot add param group {which} names to the optimizer"
                )
        if not {p for g in self.param_groups for p in g["params"]}.isdisjoint(params):
            raise ValueError("some parameters appear in more than one parameter group")

    # -- saving and loading ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {index: {...}}, "param_groups": [...]}`` with parameters as running indices.

        State tensors are not copied.
        """
        index: dict[gg.Tensor, int] = {}
        for group in self.param_groups:
            for p in group["params"]:
                index.setdefault(p, len(index))
        groups = [
            {**group, "params": [index[p] for p in group["params"]]} for group in self.param_groups
        ]
        state = {index.get(p, p): value for p, value in self.state.items() if value}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy in a state of ``state_dict()``; tensors take dtype and device of their parameter.

        Raises:
            ValueError: the groups differ in number or size.
        """
        saved_groups = copy.deepcopy(state_dict["param_groups"])
        if len(self.param_groups) != len(saved_groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved_groups)}, the optimizer has {len(self.param_groups)}"
            )
        for i, (group, saved) in enumerate(zip(self.param_groups, saved_groups, strict=True)):
            if len(group["params"]) != len(saved["params"]):
                raise ValueError(
                    "loaded state dict contains a parameter group that doesn't match the size of "
                    f"optimizer's group: group {i} has {len(saved['params'])} parameters, "
                    f"expected {len(group['params'])}"
                )
        param_of = {
            index: p
            for group, saved in zip(self.param_groups, saved_groups, strict=True)
            for index, p in zip(saved["params"], group["params"], strict=True)
        }
        state: defaultdict[gg.Tensor, dict[str, Any]] = defaultdict(dict)
        for index, values in state_dict["state"].items():
            p = param_of.get(index)
            if p is None:
                state[index] = copy.deepcopy(values)
            else:
                wide = "master" in values
                state[p] = {name: _loaded(p, name, value, wide) for name, value in values.items()}
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            saved["params"] = group["params"]
            if "param_names" in group:
                saved.setdefault("param_names", group["param_names"])
            for name, default in self.defaults.items():  # options newer than the saved state
                saved.setdefault(name, default)
        self.state, self.param_groups = state, saved_groups

    def __repr__(self) -> str:
        lines = []
        for i, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {i}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([f"{type(self).__name__} (", *lines, ")"])


def beside(p: gg.Tensor, value: gg.Tensor) -> gg.Tensor:
    """A tensor of the state of ``p`` on the device that ``p`` is on: it may have been moved."""
    return value if value.device == p.device else value.to(p.device)


def _loaded(p: gg.Tensor, name: str, value: Any, wide: bool) -> Any:
    """A saved value for the state of ``p``: a copy, tensors on its device and of its dtype, or in
    float32 beside a master copy."""
    if name == "step":
        return gg.tensor(float(value), dtype=gg.float32)
    if not isinstance(value, gg.Tensor) and hasattr(value, "__array__"):
        value = gg.as_tensor(value)
    if isinstance(value, gg.Tensor):
        floating = gg.dtypes.is_differentiable(p.dtype)
        dtype = (gg.float32 if wide else p.dtype) if floating else value.dtype
        return value.to(device=p.device, dtype=dtype).detach().clone()
    return copy.deepcopy(value)


class _Run(NamedTuple):
    """An update that was recorded: of which parameters, whether their steps are counted, all that
    were in the group, and their state, by dictionary and name; the options that are tensors on a
    device, and whether the device computes its numbers."""

    update: Any
    group: dict[str, Any]
    params: list[gg.Tensor]
    counts: bool
    members: list[gg.Tensor]
    states: list[tuple[gg.Tensor, dict[str, Any]]]
    kept: list[tuple[dict[str, Any], str, gg.Tensor]]
    device: dict[str, gg.Tensor]
    by_device: bool


def _on_device(value: Any) -> bool:
    """Whether the device reads a number: a CUDA tensor, or a list of them."""
    return isinstance(value, list) or (isinstance(value, gg.Tensor) and value.is_cuda)


def _same(a: dict[str, gg.Tensor], b: dict[str, gg.Tensor]) -> bool:
    """Whether two dictionaries hold the same tensors."""
    return a.keys() == b.keys() and all(v is b[name] for name, v in a.items())


class _Batch:
    """Parameters that have made the same number of steps: ``step`` with this one, or a list of the
    tensors that count them. ``stored`` are the 16-bit parameters whose master copies are updated;
    ``lists`` the tensors of an update."""

    __slots__ = ("lists", "step", "stored")

    def __init__(self, step: Any, lists: int):
        self.step = step
        self.stored: list[gg.Tensor] = []
        self.lists: list[list[gg.Tensor]] = [[] for _ in range(lists)]


@cache
def advance() -> Any:
    """Count one more step, on the device."""

    @gg.foreach
    def count(step):
        return step + 1

    return count


@cache
def zero() -> Any:
    """Fill with zeros, also what is not finite."""

    @gg.foreach
    def fill(g):
        return 0.0

    return fill


def check_at_least_zero(**options: float) -> None:
    """Raise ValueError for options below zero; the keywords name them in torch's words."""
    for name, value in options.items():
        if isinstance(value, gg.Tensor):
            if name == "lr" and value.numel() == 1:
                if value.is_cuda:
                    continue  # asking would wait for the device
                value = value.item()
            else:
                raise TypeError(f"{name} must be a Python number, got a Tensor; pass {name}.item()")
        if not value >= 0.0:
            what = {"lr": "learning rate", "eps": "epsilon value"}.get(name, f"{name} value")
            raise ValueError(f"Invalid {what}: {value}")


def implementation(**how: bool | None) -> dict[str, bool | None]:
    """The options with which torch's users choose how an update runs, checked as torch does.

    There is one way here, whatever they say: one pass over each parameter and its state, for a
    list of tensors at a time, as torch's ``fused`` has it. They do not change the result.
    """
    if how.get("foreach") and how.get("fused"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    return how


def gradient(p, g, weight_decay, decay: bool, maximize: bool):
    """The direction an update descends along, with L2 weight decay: a part of expressions."""
    if maximize:
        g = -g
    return g + weight_decay * p if decay else g
