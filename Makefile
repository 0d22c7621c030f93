# demo: environment, then the whole job on the default dispatcher.  test: environment and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: demo test test-all check lock bench-data bench-train bench-dispatch bench-gguf retrain-demo clean

demo: $(VENV)/.installed
	$(BIN)/accelerate launch --quiet --config_file configs/accelerate/cpu.yaml train.py --config assistant.yaml

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m scripts.check_layout
	$(BIN)/mypy train.py scripts tinydispatch data eval training export retraining

# ROWS: real ToolBench train rows to recombine into a file of full size (2 GB in /tmp, as much again for the result);
# APIS: a folder of ToolBench query files, so that the tools on offer are as many as in the original, or nearly so.
bench-data: $(VENV)/.installed
	$(BIN)/python -m scripts.make_toolbench_file --rows $(ROWS) $(if $(APIS),--apis $(APIS)) --out /tmp/tinydispatch-rows.json
	$(BIN)/python -m scripts.make_toolbench_file --rows $(ROWS) $(if $(APIS),--apis $(APIS)) \
	  --out /tmp/tinydispatch-sample.json --count 1000
	$(BIN)/python -m scripts.bench_data --file /tmp/tinydispatch-rows.json --sample /tmp/tinydispatch-sample.json \
	  --tokenizer $(or $(TOKENIZER),training/nano/weights/tokenizer.json) --check

# Milliseconds per call, against llama.cpp's own server: make bench-dispatch [MODEL=path/to/model.gguf]; else the default
# On a busy machine: OPTIONS="--limit 4 --rounds 1 --cpu-time"
bench-dispatch: $(VENV)/.installed
	$(BIN)/python -m scripts.bench_dispatch $(or $(MODEL),$$($(BIN)/python -m tinydispatch pull)) $(OPTIONS)

# Trained tokens per second on a scaled-down OPT, against SFTTrainer with its defaults on the same conversations; then an
# epoch packed as trees against one without, for one tool list and, with TOOLBENCH=rows.json, for rows that share little.
# On a busy machine: OMP_NUM_THREADS=1 make bench-train OPTIONS="--clock cpu"
bench-train: $(VENV)/.installed
	$(BIN)/python -m scripts.bench_training $(OPTIONS)
	$(BIN)/python -m scripts.bench_tree $(if $(TOOLBENCH),--toolbench $(TOOLBENCH)) $(TREE_OPTIONS)

# Tokens per second and share of the memory's bandwidth at OPT-350M's size, against llama.cpp on a gpt2 model of that size,
# or, with PATCHED=path/to/libllama.so (docs/benchmarks/gguf.md), against llama.cpp's own opt.
bench-gguf: $(VENV)/.installed
	$(BIN)/python -m scripts.bench_opt $(if $(PATCHED),--patched $(PATCHED)) $(OPTIONS)

# Four retrainings of nano in a row: promoted, refused, inconclusive, skipped.
retrain-demo: $(VENV)/.installed
	$(BIN)/python -m scripts.retrain_demo

# The hash of every pin anew; with PINS="name==version …", other versions.
lock: $(VENV)/.installed
	$(BIN)/python -m scripts.lock $(PINS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last, so that an interrupted installation starts over.
# torch comes last, with whatever its build needs besides; all else that it needs is there by then, checked by its hash.
$(VENV)/.installed: requirements.lock requirements-torch.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; make PYTHON=python3.12 …"'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps --requirement requirements.lock
	$(PIP) --requirement requirements-torch.lock
	$(BIN)/python -m pip check
	touch $@
