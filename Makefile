# `make` alone lists the targets. PYTHON chooses the interpreter (3.11 or newer) that .venv is made with.
PYTHON ?= python3
PYTEST_ARGS ?= -n auto --maxprocesses 8

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help ablation test lint format clean

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

ablation: .venv/.installed  ## run the ablation of Table A1 on the built-in sample (the same command resumes)
	$(BIN)/mobilemamba fit --config experiments/ablation_xi.yaml

test: lint  ## run the linters, the type checker and the whole test suite, then its quick part without the compiled kernels
	$(BIN)/python -m pytest $(PYTEST_ARGS)
	MOBILEMAMBA_NATIVE=0 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

lint: .venv/.installed-test  ## run ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: .venv/.installed-test  ## let ruff mend and format the code
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:  ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps keep an installation until pyproject.toml or the compiled kernels' sources change.
KERNELS := $(wildcard hatch_build.py mobilemamba/ops/native/*.[ch] mobilemamba/ops/native/build.py)

.venv/.installed: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install -e .
	@touch $@

.venv/.installed-test: pyproject.toml $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install -e '.[test]'
	@touch $@ .venv/.installed

.venv/bin/python:
	$(PYTHON) -m venv .venv
