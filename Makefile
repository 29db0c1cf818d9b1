# Every target sets up what it needs: `make demo` and `make test` work in a fresh clone.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

# $(call install,ENVIRONMENT) PACKAGES. setuptools would warn of folders beside the package's own.
install = PYTHONWARNINGS=ignore $(1)/bin/python -m pip install --quiet
# $(call environment,FOLDER): with torch, by Python 3.11 or else any python3 of a supported version.
define environment
	command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(1) || python3 -m venv $(1)
	@$(1)/bin/python -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))" || { \
	    rm -rf $(1); echo "pfl-lm needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11"; exit 1; }
	$(call install,$(1)) --upgrade pip
	$(call install,$(1)) "torch>=2.13,<2.14"
endef

.PHONY: help demo test test-wheel fuzz test-docs test-plain test-clang test-kernels lint format docs bench \
        wheel wheels clean export-env test-export keyboard-web tff test-tff interop-env test-interop

help:                           ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

demo: $(VENV)/.ready            ## train on an embedded synthetic population, then write the report
	$(BIN)/pfl-lm demo --output runs/demo --overwrite

test: $(VENV)/.ready            ## the tests; they need no network, no GPU, no data
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not wheel"

test-wheel: $(VENV)/.ready      ## a wheel, and the commands of README and docs from it in empty folders
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m wheel

test-docs: $(VENV)/.ready       ## also the commands of README and docs that take minutes
	PFL_LM_TEST_MINUTES=1 $(BIN)/python -m pytest -q tests/test_docs.py

# The same tests in settings of other machines. `required`: no kernel may be missing unseen.
KERNEL_TESTS := tests/native tests/models tests/dp/sampler tests/dp/test_rotation.py \
    tests/secagg/test_packing.py tests/secagg/test_sharing.py tests/devices tests/phones/test_memory.py \
    tests/evaluation/test_evaluate.py

# Every part that calls a kernel, and the runs that are made of them; what reaches none is left out.
# Of the network whole rounds alone: what fails there, and who lies, is the same without kernels.
PLAIN_TESTS := $(KERNEL_TESTS) tests/payload tests/server tests/dp tests/secagg tests/evaluation \
    tests/phones tests/run tests/queries tests/conformance tests/audit/test_matrix.py \
    $(patsubst %,tests/network/test_%.py,rounds full_strength)
NO_KERNEL := tests/native/test_prebuilt.py tests/dp/correlated/test_sensitivity.py \
    tests/dp/test_cohort.py tests/dp/test_published.py \
    $(patsubst %,tests/dp/accounting/test_%.py,accountant calibration poisson)

test-plain: $(VENV)/.ready      ## what concerns the C kernels, without them, as where there is no compiler
	PFL_LM_NATIVE=0 $(BIN)/python -m pytest -q -n 2 --dist loadfile \
	    $(addprefix --ignore=,$(NO_KERNEL)) $(PLAIN_TESTS)

test-clang: $(VENV)/.ready      ## what concerns the C kernels, compiled by clang
	CC=clang PFL_LM_NATIVE=required $(BIN)/python -m pytest -q -n 2 --dist loadfile $(KERNEL_TESTS)

test-kernels: $(VENV)/.ready    ## the same for every instruction set here, for aarch64, and under UBSan
	tests/in_settings.sh $(BIN)/python -m pytest -q -n 2 --dist loadfile $(KERNEL_TESTS)

fuzz: $(VENV)/.ready            ## every reader of what strangers send, for an hour; findings in fuzz_findings/
	nice -n 15 $(BIN)/python -m tests.fuzz --minutes 60

lint: $(VENV)/.ready            ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror pfl_lm/native/*.[ch] tests/native/*.c

format: $(VENV)/.ready          ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i pfl_lm/native/*.[ch] tests/native/*.c

docs: $(VENV)/.docs             ## the documentation, in docs/_build; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -E -a -b html docs docs/_build
	@echo docs/_build/index.html

bench: $(VENV)/.ready           ## the figures of benchmarks/RESULTS.md that need no real text
	$(BIN)/python -m benchmarks

wheel: $(VENV)/.ready           ## a wheel in dist/
	$(BIN)/python -m build --wheel

# Each is built from a clean folder: build/ would carry one wheel's kernels into the next.
wheels: wheel                   ## also wheels with compiled kernels, for this processor and aarch64
	rm -rf build
	PFL_LM_KERNELS_FOR=$(shell uname -m) $(BIN)/python -m build --wheel
	rm -rf build
	if command -v aarch64-linux-gnu-gcc >/dev/null; then CC=aarch64-linux-gnu-gcc \
	    PFL_LM_KERNELS_FOR=aarch64 $(BIN)/python -m build --wheel; \
	else echo "no wheel for aarch64: aarch64-linux-gnu-gcc is not installed"; fi
	rm -rf build

keyboard-web: $(VENV)/.ready    ## ONNX Runtime Web from npm, so that the keyboard's page computes itself
	$(BIN)/python -m pfl_lm.keyboard.runtime

clean:                          ## remove the environment and what was built
	rm -rf $(VENV) build dist docs/_build docs/reference *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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

$(VENV)/.docs: $(VENV)/.ready
	$(call install,$(VENV)) --editable ".[dev,docs]"
	touch $@

$(VENV)/.ready: pyproject.toml
	$(call environment,$(VENV))
	$(call install,$(VENV)) --editable ".[dev]"
	touch $@
