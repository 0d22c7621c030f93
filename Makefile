# demo: environment, then the whole job on the embedded model.  test: environment and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check bench clean

demo: $(VENV)/.installed
	$(BIN)/accelerate launch --quiet --config_file configs/accelerate/cpu.yaml train.py --config nano.yaml

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m scripts.check_layout
	$(BIN)/mypy train.py scripts tinydispatch data eval training export

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last, so that an interrupted installation starts over.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; make PYTHON=python3.12 …"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	touch $@
