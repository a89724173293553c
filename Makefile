# make demo: the paper on this machine, tiny.  make test: the fast tests.  make test-smoke: the same tables, checked.
# VENV may point outside the clone (CI keeps one between runs); PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
# Relative in commands: the clone may lie in a folder with a space or a quote in its name.
BIN := $(VENV)/bin
ON_PATH := PATH="$$(cd $(BIN) && pwd):$$PATH"
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
CORES ?= 2
PYTEST := $(ON_PATH) $(BIN)/python -m pytest
.DEFAULT_GOAL := help

.PHONY: help
help:  ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml plugin/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "FBT-Repro needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e plugin -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e plugin -e '.[dev]'
	@touch $@

.PHONY: install
install: $(INSTALLED)  ## set up .venv with this project in it

.PHONY: install-dev
install-dev: $(INSTALLED_DEV)  ## the same with what the tests and checks need

.PHONY: demo
demo: install  ## every table and figure at scale smoke, on this machine
	$(ON_PATH) fbt run --cores $(CORES) --set "execution={pack: 8}"

.PHONY: test
test: install-dev  ## the fast tests (about 12 minutes on two cores)
	$(PYTEST) -n $(CORES) -m "not smoke and not slow and not slurm"

.PHONY: test-smoke
test-smoke: install-dev  ## every table and figure at scale smoke, trained and checked
	$(PYTEST) -m "smoke and not slow and not slurm"

.PHONY: packages
packages:  ## Debian packages that the slow tests need (Slurm, Chromium, LaTeX); says so when it cannot
	@sh scripts/install_test_packages.sh

.PHONY: test-all
test-all: packages lint test test-smoke  ## every test: real Slurm, browser, survey of timm, series of kills (<= 60 minutes)
	$(PYTEST) -n $(CORES) -m "slow and not slurm"
	$(PYTEST) -n $(CORES) -m slurm

LOWEST := .venv-lowest
.PHONY: test-lowest
test-lowest:  ## the fast tests with the oldest versions allowed (but for torch's); not part of CI
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(PYTHON) scripts/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e plugin -e '.[dev]'
	PATH="$$(cd $(LOWEST)/bin && pwd):$$PATH" $(LOWEST)/bin/python -m pytest -n $(CORES) -m "not smoke and not slow and not slurm"

.PHONY: test-gpu
test-gpu:  ## on a machine with a CUDA GPU, with the torch installed there: every method, resume, memory (<= 8 minutes)
	$(PYTHON) -m pytest tests/test_gpu -q

.PHONY: test-gpu-all
test-gpu-all:  ## the same in all precisions
	FBT_GPU_ALL=1 $(PYTHON) -m pytest tests/test_gpu -q

.PHONY: lint
lint: install-dev  ## the checks of pre-commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python scripts/check_words.py

.PHONY: docs
docs: install-dev  ## the documentation as a site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean
	@echo "file://$(CURDIR)/build/site/index.html"

.PHONY: clean
clean:  ## remove smoke results and caches (never the paper's runs)
	rm -rf results/smoke .snakemake .pytest_cache
