# make quickstart and make test do everything on a fresh machine with Python, make and the package registries.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: quickstart test lint docs bench bench-reliability bench-plan bench-budget bench-tasks clean

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
	$(BIN)/python -m pip install --quiet 'keras>=3.8'
	$(BIN)/python benchmarks/tasks.py

clean:
	rm -rf $(VENV) runs build dist
