"""gpugrad's functions and nn.functional on a CUDA device, judged by torch on the CPU.

The cases are those of tests/test_functions.py and tests/test_functional.py, with all of our tensors
on the device. Left out is what a device does otherwise: errors of indices come when the host waits
(tests/cuda/test_index.py).
"""

from __future__ import annotations

import pytest

import gpugrad as gg
from tests import test_functional, test_functions
from tests.conftest import Judge

pytestmark = pytest.mark.gpu


class OnDevice(Judge):
    """Compares results on a CUDA device with torch's on the CPU."""

    def tensors(self, arguments, gradient=True):
        ours, theirs = super().tensors(arguments, gradient)
        yield [self.moved(a) if isinstance(a, gg.Tensor) else a for a in ours]
        yield theirs

    def moved(self, x):
        return x.detach().to("cuda").requires_grad_(x.requires_grad)

    def same(self, ours, theirs, rtol=0.0, atol=0.0):
        if isinstance(ours, gg.Tensor):
            assert ours.is_cuda
            ours = ours.detach().cpu().requires_grad_(ours.requires_grad)
        super().same(ours, theirs, rtol, atol)


@pytest.fixture
def judge(torch):
    with gg.device("cuda"):
        yield OnDevice(torch)


libraries = test_functional.libraries

test_functions_equal_torch = test_functions.test_equals_torch
test_functions_in_float32 = test_functions.test_equals_torch_in_float32
test_methods = test_functions.test_method_equals_torch
test_special_values_of_one_argument = test_functions.test_special_values_of_one_argument
test_special_values_of_two_arguments = test_functions.test_special_values_of_two_arguments
test_other_dtypes_of_one_argument = test_functions.test_other_dtypes_of_one_argument
test_other_dtypes_of_two_arguments = test_functions.test_other_dtypes_of_two_arguments
test_nn_functions = test_functional.test_equals_torch
test_nn_functions_in_float32 = test_functional.test_equals_torch_in_float32
