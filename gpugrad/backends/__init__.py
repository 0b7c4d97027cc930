"""What the libraries under gpugrad may do: ``gpugrad.backends``, as ``torch.backends``."""

from . import cuda, cudnn

__all__ = ["cuda", "cudnn"]
