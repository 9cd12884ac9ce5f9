# make demo      set up, then simulate a screen, train, evaluate, and print where the report lies
# make test      set up, then format, lint, types, every chapter, and all tests that are not slow
# make check     the same for somebody editing: format, lint, types and the quick tests
# make bench     the slow measurements; writes benchmarks/*.json
# make book      re-execute every chapter, store what it prints and draws, derive README.md
# make versions  the quickstart and quick tests with the oldest and the newest versions allowed
# make docs      the book as a site with search, reference and index: docs/_build/html/index.html
BIN := .venv/bin
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
	@for p in python3.11 python3; do \
	   if "$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then exec "$$p" -m venv .venv; fi; \
	 done; echo "gpovae is set up with Python 3.11, and neither python3.11 nor python3 is one. Install it, then run make again." >&2; exit 1
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
