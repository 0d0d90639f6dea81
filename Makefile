# On a fresh machine: `make train` and `make test`. ARGS passes options: make train ARGS="model=base seed=1"
VENV := .venv
BIN := $(VENV)/bin
# The first working Python from 3.11 to 3.13 on this machine; PYTHON=… chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all check docs format lock rename

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: $(VENV)/.installed ## make .venv and install the locked dependencies

$(VENV)/.installed: requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; give its path with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

train: setup ## train and plan; options in ARGS
	$(BIN)/python train.py $(ARGS)

# One process with one thread per core: further threads would only compete for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: setup ## the default test suite, a process for each core; options in ARGS
	$(PYTEST) $(ARGS)

test-all: setup ## all tests, including the slow ones
	$(PYTEST) -m "not gpu" $(ARGS)

check: setup ## check format, lint, types and import rules, as pre-commit and CI do
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

docs: setup ## renew docs/options.md and build the site in logs/site; options of mkdocs build in ARGS
	$(BIN)/python -m tools.options_page
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet $(ARGS)

format: setup ## fix format and lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

rename: ## rename the project: make rename NAME=my_project
	@test -n "$(NAME)" || { echo "give the new name: make rename NAME=my_project"; exit 1; }
	$(PYTHON) tools/rename.py $(NAME)
	@rm -f $(VENV)/.installed

lock: ## renew requirements.lock from pyproject.toml in a clean environment
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet --upgrade pip
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0
	.lock-venv/bin/python -m pip install --quiet -e ".[dev,docs,sweep,slurm,tune,video,arrow,tensorboard]"
	.lock-venv/bin/python -m pip freeze --exclude-editable --exclude trajectory-transformer | sed 's/+cpu$$//' > requirements.lock
	rm -rf .lock-venv
