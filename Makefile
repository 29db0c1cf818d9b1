# Two commands set up everything that they need: `make demo` and `make test`.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint format bench wheel clean export-env test-export

demo: $(VENV)/.ready            ## train on an embedded synthetic population, then write the report
	$(BIN)/pfl-lm demo --output runs/demo --overwrite

test: $(VENV)/.ready            ## every test; needs no network, no GPU, no data
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.ready            ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready           ## the figures of benchmarks/RESULTS.md that need no real text
	$(BIN)/python -m benchmarks

wheel: $(VENV)/.ready           ## a wheel in dist/
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The exporters of phones' formats with their runtimes, 2.9 GB, apart from the product's own.
EXPORT := .env-export
export-env: $(EXPORT)/.ready    ## an environment that can export to every format and run them

test-export: $(EXPORT)/.ready   ## export's tests through the real runtimes
	$(EXPORT)/bin/python -m pytest -q tests/export

$(EXPORT)/.ready: pyproject.toml
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(EXPORT) || python3 -m venv $(EXPORT)
	$(EXPORT)/bin/python -m pip install --quiet --upgrade pip
	$(EXPORT)/bin/python -m pip install --quiet "torch>=2.13,<2.14"
	$(EXPORT)/bin/python -m pip install --quiet --editable ".[dev,onnx,litert,executorch,coreml]"
	touch $@

# Without Python 3.11 by that name, any python3 of a supported version will do.
$(VENV)/.ready: pyproject.toml
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.13,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
