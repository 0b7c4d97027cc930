"""gpugrad.nn.functional is gpugrad.functional."""

import gpugrad as gg
import gpugrad.nn.functional as F


def test_the_same_functions():
    for name in gg.functional.__all__:
        assert getattr(F, name) is getattr(gg.functional, name)
    assert gg.nn.functional.relu is F.relu
