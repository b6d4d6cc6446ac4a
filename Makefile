# make help lists the targets. Everything is set up by the first one you call, in .venv, and nowhere else.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
UV_VERSION := 0.13.8
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.13 python3.11,$(shell $(p) -c '$(FITS)' 2>/dev/null && echo $(p))))
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test check lint types bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 10

setup: $(STAMP)  ## a virtual environment in .venv with all that is needed (about 6 GB on disk, most of it torch)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh "$(PYTHON)" $(UV_VERSION)
	@touch $@

run: $(STAMP)  ## meta-train, -validate and -test MAML on the built-in characters (make run ARGS="algo=protonet")
	@echo "metarun $(ARGS)"
	@$(BIN)/metarun $(ARGS)

test: $(STAMP)  ## the tests (make test ARGS="-k engines")
	@echo "The tests, on two processes (four to five minutes)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: lint types test  ## what must hold before a change lands: lint, types, tests

lint: $(STAMP)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy over src, tests and scripts
	@$(BIN)/mypy

bench: $(STAMP)  ## metarun and its peers side by side on this machine, into docs/speed.md (make bench ARGS="--only W4")
	@PYTHONPATH=scripts $(BIN)/python -m bench $(ARGS)

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
