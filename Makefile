# Two commands set up everything that they need: `make demo` and `make test`.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

# $(call install,ENVIRONMENT) PACKAGES. setuptools would warn of folders beside the package's own.
install = PYTHONWARNINGS=ignore $(1)/bin/python -m pip install --quiet
# $(call environment,FOLDER): with torch, by Python 3.11 or else any python3 of a supported version.
define environment
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(1) || python3 -m venv $(1)
	$(call install,$(1)) --upgrade pip
	$(call install,$(1)) "torch>=2.13,<2.14"
endef

.PHONY: demo test lint format bench wheel clean export-env test-export keyboard-web \
        tff test-tff interop-env test-interop

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

keyboard-web: $(VENV)/.ready    ## ONNX Runtime Web from npm, so that the keyboard's page computes itself
	$(BIN)/python -m pfl_lm.keyboard.runtime

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The exporters of phones' formats with their runtimes, 2.9 GB, apart from the product's own.
EXPORT := .env-export
export-env: $(EXPORT)/.ready    ## an environment that can export to every format and run them

test-export: $(EXPORT)/.ready   ## export's tests through the real runtimes
	$(EXPORT)/bin/python -m pytest -q tests/export

$(EXPORT)/.ready: pyproject.toml
	$(call environment,$(EXPORT))
	$(call install,$(EXPORT)) --editable ".[dev,onnx,litert,executorch,coreml]"
	touch $@

# tensorflow-federated agrees with nothing else about versions; the core talks to it by a pipe.
TFF := .env-tff
tff: $(TFF)/.ready              ## tensorflow-federated 0.87.0 (Python 3.11, 2.5 GB)

test-tff: $(VENV)/.ready $(TFF)/.ready  ## sums, data and a round through tensorflow-federated
	PFL_LM_TEST_TFF=1 PFL_LM_TFF_PYTHON=$(CURDIR)/$(TFF)/bin/python \
	    $(BIN)/python -m pytest -q tests/interop/test_tff.py tests/interop/test_tff_data.py

$(TFF)/.ready: requirements/tff.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" || { \
	    echo "tensorflow-federated needs Python 3.11: make tff PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(TFF)
	$(call install,$(TFF)) "setuptools<70" wheel
	$(call install,$(TFF)) --no-deps -r requirements/tff.txt
	TF_CPP_MIN_LOG_LEVEL=3 $(TFF)/bin/python -c "import tensorflow_federated" 2>/dev/null
	touch $@

INTEROP := .env-interop
interop-env: $(INTEROP)/.ready  ## the core beside Hugging Face datasets, pfl-research, LEAF's reader

test-interop: $(INTEROP)/.ready ## the doors, against the libraries that they lead to
	PFL_LM_TEST_INTEROP=1 $(INTEROP)/bin/python -m pytest -q tests/interop

$(INTEROP)/.ready: pyproject.toml requirements/interop.txt requirements/interop_bare.txt
	$(call environment,$(INTEROP))
	$(call install,$(INTEROP)) --editable ".[dev]" -r requirements/interop.txt
	$(call install,$(INTEROP)) --no-deps -r requirements/interop_bare.txt
	touch $@

$(VENV)/.ready: pyproject.toml
	$(call environment,$(VENV))
	$(call install,$(VENV)) --editable ".[dev]"
	touch $@
