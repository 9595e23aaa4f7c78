# The two commands of the README are `make demo` and `make test`; each sets itself up in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
SOAK   ?= soak.json
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test test-faults lint test-app test-slow soak bench clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[export]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[bench]'
	@touch $@

# The main job on synthetic cases: train, export, infer, score.
demo: $(VENV)/.export
	rm -rf $(DEMO)
	$(BIN)/brats-phantom $(DEMO)/train --cases 10
	$(BIN)/brats-train --config demo --data $(DEMO)/train --output $(DEMO)/runs --name demo --max-minutes 2.5
	$(BIN)/brats-export --fp16 --runs $(DEMO)/runs --output $(DEMO)/model
	$(BIN)/brats-phantom $(DEMO)/test --cases 2 --seed 1
	$(BIN)/brats-infer $(DEMO)/test --model $(DEMO)/model --output $(DEMO)/predictions --preview
	$(BIN)/brats-eval $(DEMO)/predictions $(DEMO)/test --json $(DEMO)/scores.json --quiet
	@$(BIN)/python -m benchmarks.demo_table $(DEMO)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m 'not slow and not gpu and not browser' --ignore=tests/faults

# Whether the tests notice what they are for: one wrong line at a time, in a copy.
test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest tests/faults

# The page in a real Chromium, which is the machine's own.
test-app: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'browser and not slow'

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'slow and not gpu'

# Hostile files, kills, faults of the disk and long runs, as often as the bars ask; over an hour.
# The figures go into $(SOAK); python -m benchmarks.soak_table puts them into RESULTS.md.
soak: $(VENV)/.dev
	BRATS_SOAK=full BRATS_SOAK_JSON=$(SOAK) $(BIN)/python -m pytest tests/soak -s -m 'not gpu'

bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean:
	rm -rf $(VENV) $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
