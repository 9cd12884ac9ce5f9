# make demo   set up, then simulate a screen, train, evaluate, and print where the report lies
# make test   set up, then everything that is not marked slow
# make bench  the slow measurements; writes benchmarks/*.json
# make book   re-execute every chapter, store what it prints and draws, derive README.md from nbs/index.ipynb
# make versions   the quickstart and quick tests with the oldest and the newest versions that settings.ini allows, from the wheel
# make docs   the book as a site with search and a reference: docs/_build/html/index.html
BIN := .venv/bin

.PHONY: demo test bench book docs versions
demo: .venv/.done
	$(BIN)/gpovae demo

# two workers, one thread each
test: export OMP_NUM_THREADS ?= 1
test: export NUMBA_NUM_THREADS ?= 1
test: .venv/.done .venv/.docs
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

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
