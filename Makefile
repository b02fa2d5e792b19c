# make quickstart and make test do everything on a fresh machine with Python, make and the package registries.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: quickstart test lint docs bench bench-reliability bench-plan bench-budget bench-tasks bench-speed bench-gpu clean

$(BIN)/luban: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/luban
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	@touch $@

quickstart: $(BIN)/luban
	$(BIN)/luban quickstart

test: $(VENV)/.test
	$(MAKE) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

lint: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(BIN)/luban
	$(BIN)/python tools/make_docs.py

bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py

bench-reliability: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reliability.py --count 2000

bench-plan: $(VENV)/.test
	$(BIN)/python benchmarks/plan.py

bench-budget: $(VENV)/.test
	$(BIN)/python benchmarks/budget.py

bench-tasks: $(VENV)/.test
	$(BIN)/python -m pip install --quiet 'keras==3.15.1'
	$(BIN)/python benchmarks/tasks.py

bench-gpu: $(BIN)/luban
	$(BIN)/python benchmarks/gpu.py

# Other tools, in an environment of their own. NANOGPT and NANOCHAT name clones; without them those two are left out.
PEERS ?= .venv-peers
TEXT  ?= input.txt
TEXTS ?= $(TEXT)
CLONES = $(if $(NANOGPT),--nanogpt $(NANOGPT)) $(if $(NANOCHAT),--nanochat $(NANOCHAT))

$(PEERS)/.installed: benchmarks/peers/requirements.txt benchmarks/peers/requirements-alone.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement benchmarks/peers/requirements-alone.txt
	@touch $@

bench-speed: $(BIN)/luban $(PEERS)/.installed
	$(BIN)/python benchmarks/speed.py --text $(TEXT) --peers $(PEERS)/bin/python $(CLONES)
	$(BIN)/python benchmarks/start_training.py --text $(TEXT) --peers $(PEERS)/bin/python $(if $(NANOGPT),--nanogpt $(NANOGPT))
	$(BIN)/python benchmarks/data_speed.py --peers $(PEERS)/bin/python --texts $(TEXTS)
	$(BIN)/python benchmarks/task_speed.py --peers $(PEERS)/bin/python

clean:
	rm -rf $(VENV) runs build dist
