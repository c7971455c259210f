# Every target sets up its own environment: Python 3.11 or newer is all a machine needs beforehand. The demo installs
# what the package needs at run time, every other target also what developers need.

PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEV := .venv/.dev
# torch goes in first and by its exact pin, so that no later requirement can choose another build.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help demo test slow check lint audit benchmarks docs

help:
	@echo "make demo        train and measure the smallest recipe"
	@echo "make test        lint, then every test that takes seconds"
	@echo "make slow        the tests that take minutes"
	@echo "make check       lint, then all tests"
	@echo "make lint        format, lint, types, direction of imports"
	@echo "make audit       look the tested versions up in the database of known vulnerabilities (network)"
	@echo "make benchmarks  run every benchmark and write results/benchmarks.json (quiet machine, seven minutes)"
	@echo "make docs        write every number of the pages from results/, build the site build/site and check its links"

# What the package needs at run time, which is all that the demo needs.
$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one with: make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

# And what tests, lint and benchmarks need.
$(DEV): $(RUNTIME)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(RUNTIME)
	$(BIN)/unspoken run tree-search --size tiny

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two workers with one thread each: two torch processes that both use all cores slow each other down. A file is tested by
# one of them, so that what its tests share is made once; files come in the order of tests/conftest.py, long ones first.
# Bytecode is kept, which some machines forbid: pytest compiles every test module anew without it.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

test: lint
	$(PYTEST) -m "not slow"

# One run in place of two: modules are collected once, and what the tests of a file share is made once.
check: lint
	$(PYTEST)

slow: $(DEV)
	$(PYTEST) -m slow

# An environment of its own: what looks at the pins must not change them. A package that could not be looked up fails.
audit: $(DEV)
	test -x .venv/audit/bin/pip-audit || \
	  { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install -q pip-audit; }
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

# One after another, since they measure time.
benchmarks: $(DEV)
	$(BIN)/python benchmarks/run.py

docs: $(DEV)
	$(BIN)/python docs/render.py
	$(BIN)/python docs/charts.py
	$(BIN)/python docs/pictures.py
	$(BIN)/zensical build --strict
