# What can be done here; 'make' alone lists it. Every target makes .venv first when it is missing.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
UV := $(BIN)/uv
UV_PIP_INSTALL := $(UV) pip install --python $(BIN)/python

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
# Else each of the hundreds of processes that tests start compiles torch and all else anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # 'check' goes from the quickest to the slowest
.PHONY: help demo federation test test-slow check format-check lint types walls docs bench fuzz format lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-13s %s\n' "$$name" "$$what"; done

demo: $(INSTALLED) ## Play a small federation on phantom images and print its table
	$(BIN)/rarefed-sim demo --out demo --again

federation: $(INSTALLED) ## Deploy a federation on this machine, kill its processes, compare with the simulation
	$(BIN)/rarefed-sim rehearse --out rehearsal --again --separate --images $${RAREFED_SHARED:-../shared}/data

test: $(INSTALLED) ## Run the tests, without the slow ones
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder tests

test-slow: $(INSTALLED) ## Run the slow tests alone; some need real images, see RAREFED_SHARED
	$(BIN)/pytest -m slow

check: format-check lint types walls docs test ## Run everything that must hold before a merge

format-check: $(INSTALLED) ## Check that the formatter would change nothing
	$(BIN)/ruff format --check .

lint: $(INSTALLED) ## Check the code with ruff
	$(BIN)/ruff check .

types: $(INSTALLED) ## Check the types with mypy
	$(BIN)/mypy

walls: $(INSTALLED) ## Check which folder may import which
	$(BIN)/lint-imports --no-logo

docs: $(INSTALLED) ## Check that the documents name everything there is
	$(BIN)/pytest -q tests/test_docs.py

bench: $(INSTALLED) ## Run every bench and print a table
	$(BIN)/python -m simulations.benches

fuzz: $(INSTALLED) ## Read damaged image files, and try smuggling replies, for some minutes
	$(BIN)/python -m simulations.benches.image_fuzz
	$(BIN)/python -m simulations.benches.egress_fuzz

format: $(INSTALLED) ## Let ruff format the code and correct what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(UV) ## Resolve the dependencies of pyproject.toml anew into requirements.lock
	$(UV) pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--all-extras pyproject.toml --quiet -o requirements.lock --custom-compile-command "make lock"

clean: ## Remove .venv, caches and the results of demo and rehearsal
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist demo rehearsal
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "$(PYTHON) is no Python 3.11 to 3.13; use for example: make PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "uv<0.13"

$(INSTALLED): requirements.lock pyproject.toml | $(UV)
	$(UV_PIP_INSTALL) --quiet --require-hashes -r requirements.lock
	$(UV_PIP_INSTALL) --quiet --no-deps -e .
	touch $@
