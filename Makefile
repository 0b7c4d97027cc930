# make train   environment, install, LeNet trained on the embedded digits
# make test    environment, install, tests          (ORACLE=1: installs torch and compares with it)
# make lint    ruff and mypy
# make bench   speed, eager and static, beside torch and JAX   (ARGS="--rows w1 w5 --quick";
#              TENSORFLOW=1: beside TensorFlow, too)
# make gpu     on a machine with an NVIDIA GPU: tests, recordings, compute-sanitizer, benchmarks
#              (CUDA=12 or 13; WHEELS=folder uses the installed Python and no network)
# make ladder  CUDA code checked without a GPU; its rungs are
#   make strict       the operations on a strict stand-in for CuPy arrays
#   make nvrtc        every kernel compiles for every architecture
#   make host-device  the GPU tests on the real CuPy over a device made of host memory
#   make shim         every kernel runs on the CPU, at odd sizes and in several orders of threads
# make schedules  recorded launches in other orders of threads;  make tsan  the same under ThreadSanitizer
# make recordings  records launches of the kernels' tests: replayed by shim and tsan, compared with by a GPU
# make clean   removes the environment and all caches
#
# Needs Python >= 3.11 and nothing else. PYTHON=... picks another interpreter, VENV=... another folder.

VENV ?= .venv
CUDA ?= 13
ARGS ?=
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)

# A forced OpenBLAS kernel can halve the speed of NumPy's matmul; no recipe may inherit it.
unexport OPENBLAS_CORETYPE

PY := $(VENV)/bin/python
comma := ,

.PHONY: train test lint bench gpu ladder strict nvrtc shim tsan schedules recordings host-device clean
.DELETE_ON_ERROR:

train: $(VENV)/.extra-train-jit
	$(PY) -m gpugrad train $(ARGS)

test: $(VENV)/.extra-dev $(if $(ORACLE),$(VENV)/.extra-oracle)
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.extra-dev
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/.extra-bench $(if $(TENSORFLOW),$(VENV)/.extra-tensorflow)
	$(PY) -m benchmarks $(ARGS)

gpu: $(if $(WHEELS),,$(VENV)/.extra-dev-cuda$(CUDA))
	$(if $(WHEELS),$(PYTHON),$(PY)) -m tests.cuda.gpu_session $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)

LADDER := $(VENV)/.extra-ladder

ladder: strict nvrtc host-device shim

strict: $(LADDER)
	GPUGRAD_TEST_DEVICE=strict $(PY) -m pytest tests/cuda/test_strict.py tests/cuda/test_operations.py $(ARGS)

nvrtc: $(LADDER)
	$(PY) -m pytest tests/cuda/test_nvrtc.py $(ARGS)

RECORDED := build/recordings

shim: $(LADDER)
	$(PY) -m pytest tests/cuda/test_shim.py tests/cuda/test_kernels_on_cpu.py \
		-k "not (races or schedule or registers)" $(ARGS)

# Thousands of recorded launches in other orders of threads: minutes, so not a part of every change.
schedules: $(LADDER)
	$(PY) -m pytest tests/cuda/test_kernels_on_cpu.py -k "schedule or registers" $(ARGS)

tsan: $(LADDER)
	$(PY) -m pytest tests/cuda/test_shim_races.py tests/cuda/test_kernels_on_cpu.py -k races $(ARGS)

host-device: $(LADDER)
	GPUGRAD_TEST_DEVICE=host $(PY) -m pytest -m gpu $(ARGS)

# Launches of the kernels' own tests, each array a guarded allocation of its own; `shim` and `tsan` replay them.
KERNELS := $(foreach k,elementwise rows reduce index attention convolution pooling batch_norm updates random,tests/cuda/test_$(k).py)

recordings: $(LADDER)
	GPUGRAD_TEST_DEVICE=host GPUGRAD_RECORD=$(RECORDED) $(PY) -m pytest -m gpu -p tests.cuda.recordings $(KERNELS)
	$(PY) -m tests.cuda.recordings $(RECORDED) tests/cuda/data/recordings.xz

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .extra-dev-cuda13 stands for `pip install -e .[dev,cuda13]` done with this pyproject.toml. The stamp is written last,
# so a failed install leaves none and the next make tries again.
$(VENV)/.extra-%: pyproject.toml setup.py $(VENV)/.created
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[$(subst -,$(comma),$*)]"
	@touch $@

$(VENV)/.created:
	@if [ -z "$(PYTHON)" ]; then \
		echo "gpugrad needs Python >= 3.11; none found. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "gpugrad needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "no virtual environment: on Debian and Ubuntu run 'apt install python3-venv', then make again" >&2; exit 1; }
	@touch $@
