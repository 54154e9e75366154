# Every verb sets up what it needs: `make demo` and `make test` work on a machine with nothing but Python 3.11+.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

# a user's own study: make crossval FEATS=feats.h5 TASK=rad-chestct, or make crossval MATRIX=matrix.yaml
MATRIX ?=
FEATS ?=
TASK ?= demo
DEMO ?= demo

.PHONY: help setup demo crossval test test-slow lint format types bench encoders weights build clean

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | sort | column -ts "$$(printf '\t')"

setup: $(STAMP)  ## make the environment and install clear into it

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; found " + sys.version.split()[0] + ". Name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## draw the embedded cohort, extract, train, print the results
	$(BIN)/clear demo $(DEMO)

crossval: $(STAMP)  ## cross-validate: the embedded cohort, MATRIX=matrix.yaml, or FEATS=feats.h5 TASK=name
ifneq ($(MATRIX),)
	$(BIN)/clear crossval $(MATRIX)
else ifeq ($(FEATS),)
	$(BIN)/clear demo $(DEMO)
else
	$(BIN)/clear train --task $(TASK) $(FEATS)
endif

test: $(STAMP)  ## the tests (CLEAR_TEST_DATA names a folder of real scans for those that need one)
	$(BIN)/python -m pytest -q -n $(WORKERS)

test-slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

bench: $(STAMP)  ## speed and memory, as ratios in one run
	$(BIN)/python tests/bench

encoders: $(STAMP)  ## measure every encoder and write docs/encoders.md
	$(BIN)/python tests/bench/encoders.py

weights: $(STAMP)  ## train the weights that come with the package (LeCL, and MoCo v3 beside it; up to two hours)
	$(BIN)/python -m pretrain.shipped build/weights --install

build: $(STAMP)  ## wheel and source distribution
	$(BIN)/python -m build

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist *.egg-info
