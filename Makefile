# Headwater. `make` alone shows what there is.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format pictures wheel clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo
	@echo "  make demo DATA=folder   runs a folder of your own (MVTec layout) instead of the demo's pictures"

setup: $(VENV)/.installed ## make .venv with the command .venv/bin/headwater (nothing to do if nothing changed)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Headwater needs Python 3.11 to 3.13; $(PYTHON) is `$(PYTHON) --version`. Set PYTHON=/path/to/python3.11."; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1000000) }'); \
	  test -x $(BIN)/headwater || test "$${free:-99}" -ge 8 \
	  || { echo "Headwater needs 8 GB of free disk to be installed; $(CURDIR) has $$free GB. Make room, or clone it to a larger disk."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 7 GB, some minutes, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## run the main job: images -> features -> heads -> scores -> MLflow (DATA=folder for your own)
	@$(BIN)/headwater demo --home $(DEMO)/home $(if $(DATA),--images '$(DATA)')

test: setup ## the default tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup ## the slow tests (minutes each)
	@$(BIN)/python -m pytest -m slow --timeout 1800

check: setup ## formatting, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup ## put the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

pictures: setup ## draw the pictures of docs/ from the code
	@PYTHONPATH=. $(BIN)/python docs/draw.py

wheel: setup ## build dist/*.whl
	@$(BIN)/python -m build --wheel

clean: ## remove what was built and the demo (not .venv)
	@rm -rf build dist *.egg-info $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
