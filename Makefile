# Everything runs in an environment of its own, .venv, which is made when it is first needed.
# Needs make and Python 3.11 or newer; another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first imported; all modules of all packages would take as long as the rest.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
# What is built here is built by the locked setuptools.
LOCKED := $(INSTALL) --no-deps --no-build-isolation --require-hashes
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --no-emit-package torch --constraints constraints.txt

# Altogether, shared out among the tests.
FUZZ_SECONDS ?= 600

.PHONY: help demo test test-models test-deploy fuzz lint lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## a real federated fine-tuning of a small model, a few minutes on two CPU cores
	$(BIN)/fedloom demo

# Else each worker compiles each file of tests anew, wherever the environment says so.
test test-models test-deploy: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.dev ## the test suite, but for what the next two run
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not deploy and not families"

test-models: $(VENV)/.dev ## the other families of models: after a change to fedloom/model or of transformers' version
	$(BIN)/python -m pytest -n auto --dist worksteal -m families

test-deploy: $(VENV)/.dev ## tests of real processes: ranks, a Flower federation, peers over libp2p
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m deploy

fuzz: $(VENV)/.dev ## random and damaged input for ten minutes; FUZZ_SECONDS=60 for one
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz

lint: $(VENV)/.dev ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lock: ## both lock files anew from pyproject.toml, after `make lint`; UPGRADE=--upgrade for the newest versions
	$(LOCK) $(UPGRADE) --extra dev --group models pyproject.toml -o requirements-dev.lock
	$(LOCK) --constraints requirements-dev.lock --group models pyproject.toml -o requirements.lock

clean: ## remove the environment and the caches; runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch stands in no lock: its builds (CPU, CUDA) have other hashes. It comes last, when all that it needs is there.
$(VENV)/.runtime: pyproject.toml constraints.txt requirements.lock Makefile
	@echo "Setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit("fedloom needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(LOCKED) -r requirements.lock
	@$(INSTALL) -c constraints.txt torch
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Adding the tools for tests and linting"
	@$(LOCKED) -r requirements-dev.lock
	@touch $@
