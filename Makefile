# make repro   install and run the pipeline        make test   install and run the tests
# make ui      MLflow with every run in it         make lint   style

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: repro test ui lint verify clean

repro: $(VENV)/.installed
	python -m pipeline repro

test: $(VENV)/.installed-test
	python -m pytest -n 2 --dist loadfile

ui: $(VENV)/.installed
	python -m pipeline ui

lint: $(VENV)/.installed-test
	ruff check . && ruff format --check .

# The CI re-run: everything computed again, then held against the committed receipt.
verify: $(VENV)/.installed
	python -m pipeline repro --force
	python -m pipeline verify

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .work
