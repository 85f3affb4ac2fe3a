# make run: set-up and the demo; make demo-data: the demo with a month of history;
# make check: what needs no server, in two minutes; make test: all tests;
# make torture: 100 kills a database; make bench: how far from the floor (ARGS='--quick ingest');
# make lock: new exact versions of requirements*.in; make outdated: pins that are yanked or old
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV = uv==0.13.9

# What ARGS choose may all need a server, or none of it (5 is pytest's exit code for no test)
OR_NONE = $(if $(ARGS),|| test $$? -eq 5)

.PHONY: run demo-data check lint quick test torture bench lock outdated clean
# REQUIRE_ALL=1: a part that is missing on this machine fails its tests instead of skipping them
export REQUIRE_ALL

run: $(VENV)/.run
	$(BIN)/flask demo

demo-data: $(VENV)/.run
	$(BIN)/flask demo --days 30

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint quick

# In memory, where there is such a folder: much of their time is SQLite's waiting for the disk
quick: $(VENV)/.test
	TMPDIR=$(firstword $(wildcard /dev/shm) /tmp) $(BIN)/python -m pytest -n 4 \
	  -o tmp_path_retention_count=1 -m 'not server and not torture' $(ARGS) $(OR_NONE)

# The torture measures how long nobody is answered, so nothing else may run beside it
test: check
	$(BIN)/python -m pytest -n auto --dist loadgroup -m 'server and not torture' $(ARGS) $(OR_NONE)
	$(BIN)/python -m pytest -m torture

torture: $(VENV)/.test
	$(BIN)/python -m tests.torture sqlite mariadb galera --kills 100

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

# Which pins are yanked (exits 1 then), or have a newer version
outdated: $(VENV)/.run
	$(BIN)/python .ci/outdated.py

# Exact versions with hashes, for every Python and system at once
lock: $(VENV)/.run
	$(INSTALL) $(UV)
	for in in requirements requirements-dev benchmarks/requirements; do \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make lock' \
	    --output-file $$in.txt $$in.in || exit; \
	done

$(VENV)/.run: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements.txt
	touch $@

$(VENV)/.test: requirements-dev.txt $(VENV)/.run
	$(INSTALL) --require-hashes -r requirements-dev.txt
	touch $@

$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.run
	$(INSTALL) --require-hashes -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf $(VENV)
