# Two commands for a fresh machine that has Python 3.11 - 3.13, pip and make: `make demo` and `make test`.
# Every installation takes the versions in requirements.lock, except `make test-latest`.
PYTHON ?= python3
VENV := .venv
LOCK := requirements.lock
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test test-deep test-latest lint types docs install lock clean

install: $(VENV)/.installed

# The package is built with the setuptools of the lock, not with the newest one in an isolated environment. `--upgrade`
# replaces the older one that comes with a new environment.
$(VENV)/.installed: pyproject.toml $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(LOCK:%=--constraint %) --upgrade setuptools
	$(PIP) install $(LOCK:%=--constraint %) --no-build-isolation --editable ".[full,dev]"
	touch $@

# Resolve all versions anew, for every supported Python and platform. `make lock UPGRADE=` keeps the versions that
# are locked already and adds only what pyproject.toml newly asks for.
UPGRADE ?= --upgrade
lock:
	test -x .venv-lock/bin/uv || ($(PYTHON) -m venv .venv-lock && \
	    .venv-lock/bin/python -m pip --quiet --disable-pip-version-check install "uv>=0.5")
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest $(UPGRADE) \
	    --extra full --extra dev --no-annotate --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

demo: install
	$(BIN)/coedge demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Everything once: every oracle, operator and scheme. Modules stay in one process, which keeps their fixtures. Tests of
# clusters wait for processes, so three processes keep two cores busy. The types are checked beside them: without a
# cache, mypy needs one core for as long as a tenth of the tests. Either failure fails the target.
test: lint
	$(BIN)/mypy & types=$$!; \
	    $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	    wait $$types && exit $$tests

# The full counts of the random tests, and what is too long for `test`: notebooks, lab, the documentation's site.
test-deep: install
	$(BIN)/pytest --deep --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The same tests with the newest versions that pyproject.toml admits.
test-latest:
	rm -rf .venv-latest
	$(MAKE) test VENV=.venv-latest LOCK=

docs: install
	$(BIN)/python -m sphinx -q -W docs docs/_build

clean:
	rm -rf $(VENV) .venv-latest .venv-lock build docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
