"""A stand-in for nvidia-cudnn-frontend on the host-memory device: graphs of one convolution
or attention, computed with NumPy at the addresses they are given.

It has the calls gpugrad/backend/cudnn.py makes, refuses arguments NVIDIA's frontend would refuse
and counts what costs time: graphs built, handles, changes of stream, executions.
"""

from __future__ import annotations

import ctypes
import enum
from collections import Counter

import numpy as np

from gpugrad.ops import convolution

counts: Counter = Counter()
declined: set[str] = set()  # operations there is no engine for
workspaces: list[int] = []  # addresses that were given

WORKSPACE = 4096


class cudnnGraphNotSupportedError(RuntimeError):
    pass


class data_type(enum.Enum):
    HALF = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT = "float32"
    NOT_SET = None


heur_mode = enum.Enum("heur_mode", "A B FALLBACK")
numerical_note = enum.Enum("numerical_note", "TENSOR_CORE DOWN_CONVERT_INPUTS NONDETERMINISTIC")
build_plan_policy = enum.Enum("build_plan_policy", "HEURISTICS_CHOICE ALL")


class Handle:
    stream = None


def backend_version() -> int:
    return 92800


def create_handle() -> Handle:
    counts["handles"] += 1
    return Handle()


def set_stream(handle: Handle, stream: int) -> None:
    counts["streams"] += 1
    handle.stream = stream


class Tensor:
    def __init__(self, dim=None, stride=None, data_type=None, uid=None):
        self.dim, self.stride, self.type, self.uid = dim, stride, data_type, uid
        self.is_output = False

    def get_data_type(self):
        return self.type

    def set_output(self, value: bool) -> Tensor:
        self.is_output = value
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_data_type(self, type: data_type) -> Tensor:
        self.type = type
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self

    def at(self, address: int) -> np.ndarray:
        """The array at an address."""
        assert address % 16 == 0, "the frontend promises 16 bytes to its engines"
        if self.type is data_type.BFLOAT16:
            import ml_dtypes

            dtype = np.dtype(ml_dtypes.bfloat16)
        else:
            dtype = np.dtype(self.type.value)
        length = sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True)) + 1
        memory = (ctypes.c_char * (length * dtype.itemsize)).from_address(address)
        strides = [s * dtype.itemsize for s in self.stride]
        return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), self.dim, strides)


class pygraph:
    def __init__(self, *, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert compute_data_type is data_type.FLOAT and isinstance(handle, Handle)
        self.inputs: list[Tensor] = []
        self.forbidden: list = []
        self.stage = "described"

    def tensor(self, *, dim, stride, data_type, uid):
        self.inputs.append(Tensor(dim, stride, data_type, uid))
        return self.inputs[-1]

    def get_inputs(self):
        return self.inputs

    def _convolution(self, name, a, b, options):
        for value in options.values():
            assert isinstance(value, list) and all(type(v) is int for v in value)
        return self._operation(name, (a, b), 1, options)[0]

    def _operation(self, name, operands, results: int, options):
        self.operation, self.operands, self.options = name, operands, options
        self.results = [Tensor() for _ in range(results)]
        return self.results

    def conv_fprop(self, *, image, weight, **options):
        return self._convolution("fprop", image, weight, options)

    def conv_dgrad(self, *, loss, filter, **options):
        return self._convolution("dgrad", loss, filter, options)

    def conv_wgrad(self, *, image, loss, **options):
        return self._convolution("wgrad", loss, image, options)

    def sdpa(self, *, q, k, v, attn_scale, use_causal_mask, generate_stats):
        assert generate_stats is True
        options = {"scale": attn_scale, "causal": use_causal_mask}
        return self._attention("sdpa", (q, k, v), 2, options)

    def sdpa_backward(
        self, *, q, k, v, o, dO, stats, attn_scale, use_causal_mask, use_deterministic_algorithm
    ):
        self.deterministic = use_deterministic_algorithm
        options = {"scale": attn_scale, "causal": use_causal_mask}
        return self._attention("sdpa_backward", (q, k, v, o, dO, stats), 3, options)

    def _attention(self, name, operands, results, options):
        assert type(options["scale"]) is float and type(options["causal"]) is bool
        return self._operation(name, operands, results, options)

    def _go(self, before: str, after: str) -> None:
        assert self.stage == before, f"{after} after {self.stage}"
        self.stage = after

    def validate(self):
        self._go("described", "validated")
        assert all(t.is_output and t.uid is not None and t.dim for t in self.results)
        tensors = [*self.operands, *self.results]
        if self.operation.startswith("sdpa"):
            sums = tensors.pop(5 if self.operation == "sdpa_backward" else 4)
            assert sums.type is data_type.FLOAT and sums.dim == [*tensors[0].dim[:3], 1]
            assert sums.stride == list(np.cumprod([1, 1, *sums.dim[2:0:-1]])[::-1]), "packed"
            for t in tensors:
                assert len(t.dim) == 4 and t.stride[3] == 1 and t.dim[3] % 8 == 0
                assert all(s > 0 and s % 8 == 0 for s in t.stride[:3]), "rows begin at 16 bytes"
            lengths = {t.dim[2] for t in self.operands[:3]}
            if self.operation == "sdpa_backward" and lengths == {1}:
                raise cudnnGraphNotSupportedError("s_q = s_kv = 1 is not supported.")
        assert len({t.type for t in tensors}) == 1, "one dtype"

    def build_operation_graph(self):
        self._go("validated", "lowered")

    def create_execution_plans(self, modes):
        self._go("lowered", "planned")

    def deselect_numeric_notes(self, notes):
        assert self.stage == "planned"
        self.forbidden = notes

    def check_support(self):
        assert self.stage == "planned"
        if self.operation in declined:
            raise cudnnGraphNotSupportedError("no engine")

    def build_plans(self, policy=build_plan_policy.HEURISTICS_CHOICE):
        self._go("planned", "built")
        counts["graphs"] += 1

    def get_workspace_size(self) -> int:
        return WORKSPACE

    def get_execution_plan_count(self) -> int:
        return 3

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return WORKSPACE * index

    def execute_plan_at_index(self, addresses, workspace, index, *, handle):
        if index == 0:
            raise RuntimeError("this plan is left out")
        counts[f"plan {index}"] += 1
        self.execute(addresses, workspace, handle=handle)

    def execute(self, addresses, workspace, *, handle):
        import cupy

        assert self.stage == "built"
        assert handle.stream == cupy.cuda.get_current_stream().ptr
        assert set(addresses) == {t.uid for t in (*self.operands, *self.results)}
        counts["executions"] += 1
        workspaces.append(workspace)
        operands = [t.at(addresses[t.uid]).astype(np.float64) for t in self.operands]
        compute = getattr(self, f"_{self.operation}", self._convolve)
        for t, computed in zip(self.results, compute(*operands), strict=True):
            y = t.at(addresses[t.uid])
            y[...] = computed.astype(y.dtype)

    def _scores(self, q, k):
        scores = q @ k.swapaxes(2, 3) * self.options["scale"]
        if self.options["causal"]:  # a query sees keys up to its own place, counted from the first
            scores[..., ~np.tri(*scores.shape[2:], dtype=bool)] = -np.inf
        return scores

    def _sdpa(self, q, k, v):
        scores = self._scores(q, k)
        top = scores.max(-1, keepdims=True)
        sums = top + np.log(np.exp(scores - top).sum(-1, keepdims=True))
        return np.exp(scores - sums) @ v, sums

    def _sdpa_backward(self, q, k, v, o, dO, stats):
        """Weights from the sums that are given, as NVIDIA's graph of the gradient."""
        weights = np.exp(self._scores(q, k) - stats)
        product = (dO * o).sum(-1, keepdims=True)
        d = weights * (dO @ v.swapaxes(2, 3) - product) * self.options["scale"]
        return d @ k, d.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ dO

    def _convolve(self, a, b):
        return (self._convolution_of(a, b),)

    def _convolution_of(self, a, b):
        o = self.options
        padding = tuple(zip(o["pre_padding"], o["post_padding"], strict=True))
        given = {
            "stride": tuple(o["stride"]), "padding": padding, "dilation": tuple(o["dilation"])
        }  # fmt: skip
        shape = tuple(self.results[0].dim)
        # as the library: groups follow from the channels of images and filters
        if self.operation == "fprop":
            return convolution.forward(a, b, groups=a.shape[1] // b.shape[1], **given)
        if self.operation == "dgrad":
            groups = shape[1] // b.shape[1]
            return convolution.input_gradient(a, b, shape=shape, groups=groups, **given)
        groups = b.shape[1] // shape[1]
        return convolution.weight_gradient(a, b, shape=shape, groups=groups, **given)
