"""Speed, eager and static, beside other libraries: `python -m benchmarks` (README.md here)."""
