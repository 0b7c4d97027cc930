"""CUDA C++ sources, shipped as text and compiled with NVRTC when first used (see README.md beside
this file)."""
