# Two commands for a fresh machine that has Python, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types docs install clean

install: $(VENV)/.installed

# torch first, at the tested version: a later resolver step then finds it satisfied.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[full,dev]"
	touch $@

demo: install
	$(BIN)/coedge demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

test: lint types
	$(BIN)/pytest --numprocesses 2 --dist loadfile

docs: install
	$(BIN)/python -m sphinx -q -W docs docs/_build

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
