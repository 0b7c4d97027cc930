"""Package list only; everything else is in pyproject.toml.

`packages.find` of pyproject.toml cannot add a folder that lies elsewhere, and the CUDA sources live
in the top folder `kernels/`. Finding the rest here means that a new subpackage is never forgotten.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["gpugrad", "gpugrad.*"]), "gpugrad.kernels"])
