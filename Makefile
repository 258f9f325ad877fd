# `make demo` and `make test` do everything, set-up included; `make help` lists the rest.
#
#   TORCH_INDEX=<url>  package index that torch comes from; remembered in .venv
#   PYTHON=<command>   Python 3.11 or newer that .venv is made with
#   WORKERS=<n>        test processes (each computes with one thread)
#   ARGS=<...>         further arguments of pytest, or of `vqkit demo`

PYTHON ?= $(shell python3.11 -c "" 2>/dev/null && echo python3.11 || echo python3)
TORCH_INDEX ?= $(shell cat .venv/torch-index 2>/dev/null)
WORKERS ?= 2
ARGS ?=

VENV_PYTHON := .venv/bin/python
PIP := $(VENV_PYTHON) -m pip --no-input --disable-pip-version-check
INSTALL = $(PIP) install --quiet -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")
PYTEST := $(VENV_PYTHON) -m pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check fast lint format types soak check-wheel clean FORCE

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile

demo: .venv/ready-demo ## the main job on ready pictures, a few minutes on a CPU
	@$(VENV_PYTHON) .venv/bin/vqkit demo $(ARGS)

test: .venv/ready-dev ## every test but the soak campaigns
	@$(PYTEST) -n $(WORKERS) --dist worksteal -m "not soak" $(ARGS)

check: lint types fast ## before a commit: format, ruff, mypy, fast tests

fast: .venv/ready-dev ## the tests that take no long time
	@$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow and not soak" $(ARGS)

lint: .venv/ready-dev ## format check and ruff
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m ruff check .

format: .venv/ready-dev ## rewrite the files in the house format
	@$(VENV_PYTHON) -m ruff format .
	@$(VENV_PYTHON) -m ruff check --fix .

types: .venv/ready-dev ## mypy
	@$(VENV_PYTHON) -m mypy

soak: .venv/ready-dev ## long campaigns, hours
	@$(PYTEST) -n $(WORKERS) --timeout=0 -m soak $(ARGS)

check-wheel: .venv/ready-dev ## the wheel, installed into an empty environment
	@TORCH_INDEX="$(TORCH_INDEX)" .ci/check_wheel

clean: ## remove what make, the tests and the demo left behind, .venv included
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Set-up. Each stamp is written last, so an interrupted step runs again.

# A virtual environment holds absolute paths: in a moved or copied folder it is made anew.
MADE_HERE := $(shell [ "$$(cat .venv/place 2>/dev/null)" = "$$(pwd -P)" ] && echo yes)
ifneq ($(MADE_HERE),yes)
.venv/place: FORCE
endif
# Another index: torch is installed again, in the other build.
ifneq ($(TORCH_INDEX),$(shell cat .venv/torch-index 2>/dev/null))
.venv/torch-index: FORCE
endif

.venv/place:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "vqkit needs Python 3.11 or newer; $(PYTHON) is" \
	    "$$("$(PYTHON)" --version 2>/dev/null || echo not usable)." \
	    "Install it, or name one: make PYTHON=<command>" >&2; exit 1; }
	@echo "making .venv (the first time takes a few minutes)"
	@"$(PYTHON)" -m venv $$([ -e .venv/place ] && echo --clear) .venv || { \
	  echo "python -m venv failed; Debian and Ubuntu: install python3-venv" >&2; exit 1; }
	@pwd -P > $@

# An index of torch builds may hold little else, or older versions of it: only torch itself is
# taken from there, and the packages that it needs are found by the next step.
.venv/torch-index: .venv/place constraints.txt
ifneq ($(TORCH_INDEX),)
	$(PIP) install --quiet -c constraints.txt --index-url "$(TORCH_INDEX)" \
	  --no-deps --force-reinstall torch
endif
	@printf '%s\n' "$(TORCH_INDEX)" > $@

.venv/ready-demo: .venv/torch-index pyproject.toml constraints.txt
	$(INSTALL) -e ".[train,search,plots,demo]"
	@touch $@

.venv/ready-dev: .venv/torch-index pyproject.toml constraints.txt
	$(INSTALL) -e ".[all,dev]"
	@touch .venv/ready-demo $@
