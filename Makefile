# `make` alone lists the targets. PYTHON chooses the interpreter (3.11 or newer) that .venv is made with.
PYTHON ?= python3
PYTEST_ARGS ?= -n auto --maxprocesses 8 --dist worksteal

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help ablation gpu notebooks test suite test-lowest lint format clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

ablation: .venv/.installed  ## run the ablation of Table A1 on the built-in sample (the same command resumes)
	$(BIN)/mobilemamba fit --config experiments/ablation_xi.yaml

gpu: .venv/.installed  ## measure everything once on a GPU, in eight minutes; GPU_ARGS are its options
	$(BIN)/mobilemamba gpu $(GPU_ARGS)

notebooks: .venv/.installed-notebooks  ## open the notebooks in a browser
	$(BIN)/jupyter lab notebooks

test: .venv/.installed-test  ## run the linters, the type checker and the whole test suite, then what is marked `kernels` once more without them
	@$(MAKE) --no-print-directory --jobs 2 lint suite  # side by side: the type checker is one process

suite: .venv/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	MOBILEMAMBA_NATIVE=0 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "kernels and not slow"

test-lowest:  ## run the quick tests with the lowest versions of all dependencies, in .venv-lowest (downloads gigabytes)
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install -e '.[test]' -c .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pytest $(PYTEST_ARGS) -m "not slow"

lint: .venv/.installed-test  ## run ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: .venv/.installed-test  ## let ruff mend and format the code
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:  ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv .venv-lowest build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps keep an installation until pyproject.toml or the compiled kernels' sources change.
KERNELS := $(wildcard hatch_build.py mobilemamba/ops/native/*.[ch] mobilemamba/ops/native/build.py)

.venv/.installed: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install -e .
	@touch $@

.venv/.installed-test: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install --no-compile -e '.[test]'  # else all of it, most of which no test imports
	@touch $@ .venv/.installed

.venv/.installed-notebooks: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install -e '.[notebooks]'
	@touch $@ .venv/.installed

.venv/bin/python:
	$(PYTHON) -m venv .venv
