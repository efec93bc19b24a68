# Every target makes .venv by itself; PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
# The versions that CI has passed with; without them, the ranges in pyproject.toml hold.
INSTALL := $(BIN)/python -m pip install --quiet --constraint tests/constraints.txt

# Two processes take one file after the other, in the order of tests/conftest.py.
TWO := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test check lint types laws golden chaos packages constraints monitor clean

run: .venv/.run  ## pre-train an encoder on this machine
	$(BIN)/python launch/slurm.py method=mocov3 nodes=4

test: .venv/.test packages  ## the whole test suite, by two processes at once
	$(TWO)

check: lint types laws  ## under a minute

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test
	$(BIN)/mypy

laws: .venv/.test
	$(BIN)/python -m pytest -q tests/test_laws.py

golden: .venv/.test  ## accept what has changed on purpose in the golden files
	ACCEPT_GOLDEN=1 $(BIN)/python -m pytest -q -m golden

chaos: .venv/.test  ## the longer proofs
	$(BIN)/python -m pytest -q -s -m chaos

monitor:  ## watch the runs of ./runs at http://127.0.0.1:9090, by the Prometheus of this machine
	sh monitoring/monitor.sh

packages:
	sh tests/packages.sh

constraints:  ## the newest versions within the ranges, for the tests to be run with; needs uv
	sh tests/constraints.sh

.venv/.run: pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/.test: pyproject.toml tests/constraints.txt .venv/.run
	$(INSTALL) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
