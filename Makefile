# Needs only Python 3.11, make and a package index.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-engines test-image fuzz lint clean

demo: $(VENV)/core.stamp
	@mkdir -p demo
	$(BIN)/placement solve examples/traces --nodes 4 --gpus-per-node 2 --holdout 0.3 -o demo/placement.json --report demo/report.html

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto --dist loadfile

# fetches the wheels of serving engines (half a gigabyte) into ~/.cache/expert-placement, once
test-engines: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m engines -rs tests/engines

# coverage-guided, over all that reads what others wrote; new findings end up in .fuzz, and the exit code says so
SECONDS ?= 600
fuzz: $(VENV)/test.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group fuzz
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS)

# installs what the Dockerfile installs into a clean environment and runs the service there, a minute or two
test-image: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m image -rs tests/deploy

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=api $(BIN)/lint-imports --no-cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

# pip learned --group in 25.1, so it is brought up to date first
$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[runtime,service]" --group test --group lint
	@touch $@ $(VENV)/core.stamp

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
