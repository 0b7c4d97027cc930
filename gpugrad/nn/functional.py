"""``gpugrad.functional`` under torch's name, for ``import gpugrad.nn.functional as F``."""

from gpugrad.functional import *  # noqa: F403
from gpugrad.functional import __all__ as __all__
