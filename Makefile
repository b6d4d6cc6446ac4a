# make help lists the targets. The first target that you call makes .venv; nothing is installed anywhere else.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
UV_VERSION := 0.13.8
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.13 python3.11,$(shell $(p) -c '$(IS_SUPPORTED)' 2>/dev/null && echo $(p))))
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test slow check lint types bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 10

setup: $(STAMP)  ## make .venv with metarun and its tools (about 6 GB on disk, most of it torch)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh "$(PYTHON)" $(UV_VERSION)
	@touch $@

run: $(STAMP)  ## train and test MAML on the built-in glyphs, one or two minutes (make run ARGS="algo=protonet" for another)
	@echo "metarun $(ARGS)"
	@$(BIN)/metarun $(ARGS)

test: $(STAMP)  ## the fast tests, five minutes on two cores (make test ARGS="tests/engine -k adjoint" for some)
	@echo "The fast tests, in two processes: about five minutes on two cores"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

slow: $(STAMP)  ## the tests marked slow (compiled networks, long trainings), several minutes more
	@echo "The slow tests, in two processes: several minutes, most of them in the compiler"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)

check: lint types test  ## lint, types and test: what must pass before a change lands

lint: $(STAMP)  ## ruff check and ruff format --check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict on src, tests and scripts
	@$(BIN)/mypy

bench: $(STAMP)  ## time metarun and other libraries, hours; writes docs/speed.md (make bench ARGS="--only W4" for some)
	@PYTHONPATH=scripts $(BIN)/python -m bench $(ARGS)

clean:  ## remove .venv and caches; keep outputs/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
