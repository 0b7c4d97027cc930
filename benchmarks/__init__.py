"""Speed beside PyTorch: `python -m benchmarks` (see README.md in this folder)."""
