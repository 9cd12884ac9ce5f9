# make demo      set up, then simulate a screen, train, evaluate, and print where the report lies
# make test      set up, then format, lint, types, every chapter, and all tests that are not slow
# make check     the same for somebody editing: format, lint, types and the quick tests
# make bench     the slow measurements; writes benchmarks/*.json
# make book      re-execute every chapter, store what it prints and draws, derive README.md
# make versions  the quickstart, demo and quick tests with the oldest and newest versions, on each
#                Python here; writes benchmarks/versions.json
# make docs      the book as a site with search, reference and index: docs/_build/html/index.html
BIN := .venv/bin
# the first that works: the Python that is active, else the newest; or: make PYTHON=python3.13
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
QUICK := tests/core tests/network/test_grn.py tests/data/test_responses.py tests/book/test_house.py tests/book/test_names.py

.PHONY: demo test check lint bench book docs versions
demo: .venv/.done
	$(BIN)/gpovae demo

# two workers, one thread each
test check: export OMP_NUM_THREADS ?= 1
test check: export NUMBA_NUM_THREADS ?= 1
test: lint .venv/.docs
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

check: lint
	$(BIN)/python -m pytest -n 2 -q $(QUICK)

lint: .venv/.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.done
	$(BIN)/python benchmarks/bench.py

book: .venv/.done
	$(BIN)/python tools/book.py execute
	$(BIN)/python tools/book.py readme

versions: .venv/.done
	$(BIN)/python tools/versions.py

docs: .venv/.docs
	$(BIN)/python tools/docs.py

.venv/.docs: .venv/.done
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

.venv/.done: constraints.txt setup.py settings.ini
	@for p in $(PYTHON); do \
	   if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null; then \
	      if [ -e .venv ] && [ "$$($(BIN)/python -V 2>&1)" != "$$("$$p" -V 2>&1)" ]; then clear=--clear; fi; \
	      exec "$$p" -m venv $$clear .venv; \
	   fi; \
	 done; echo "gpovae is set up with Python 3.11 or newer (with venv), and none of these is one: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3.13" >&2; exit 1
	@echo "Installing gpovae and its tools into .venv with $$($(BIN)/python -V): minutes, and 3 GB (more where torch brings CUDA)." >&2
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
