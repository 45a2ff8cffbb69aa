# `make run`, `make test` and `make ui` work from a clean clone; each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than cores: with two, tests of real servers leave cores idle (9 min 39 s; with three 8 min 6 s, 2 cores).
TEST_WORKERS ?= 3

.PHONY: setup run test test-long test-ui screenshots ui lint clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=python3.x" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[site,dev,bench,browser]'
	@touch $@

setup: $(STAMP)

run: $(STAMP)
	$(BIN)/curtail run --experiment laptop

ui: $(STAMP)
	$(BIN)/curtail ui --experiment laptop

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# Whole runs that are disturbed or large, in the web UI or from a wheel, and other proofs that take their time. Two at a
# time: each has more processes than a machine has cores, and their sites are lost if they cannot show life.
test-long: $(STAMP)
	$(BIN)/python -m pytest -m long --numprocesses 2 --dist loadfile --no-loadscope-reorder

# In a real browser: Debian's package `chromium`.
test-ui: $(STAMP)
	$(BIN)/python -m pytest -m browser tests/browser

# Pictures of the web UI for the README.
screenshots: $(STAMP)
	CURTAIL_SCREENSHOTS=docs/images $(BIN)/python -m pytest -m browser tests/browser

clean:
	rm -rf $(VENV) .curtail build *.egg-info
