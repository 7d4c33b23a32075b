# Everything here starts from a clone and a Python from 3.11 to 3.13; the first target that needs it sets up .venv.
SHELL  := /bin/bash
PYTHON ?= python3
CORES  ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

BIN       := .venv/bin
# What follows it runs side by side, one a core, in one thread a process: more would only get in the way of the others.
# Kernels that it starts have their imports behind them.
WARM      := $(BIN)/python -m lossbook.warm
PYTEST    := $(WARM) $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadscope
# Snakemake keeps going past a notebook that fails, and takes up again what a kill has left; --nolock because a killed
# run leaves its lock behind. Its own talk is left out, its errors and the line of each notebook are not.
SNAKEMAKE := $(WARM) $(BIN)/python -m snakemake --cores $(CORES) --scheduler greedy --keep-going \
             --rerun-incomplete --nolock --quiet rules progress host reason
QUIETLY   := 2>&1 | \
             { grep --line-buffered -vE '^(Assuming|Building|Using|Select|Execute|Complete|Elapsed|Nothing) ' || true; }

EXPERIMENTS := $(basename $(notdir $(wildcard notebooks/experiments/*.ipynb))) airbench

# Kernels choose the inline back end themselves, unless this variable is in their way.
unexport MPLBACKEND

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help reproduce test lab figures bench paper lock clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

reproduce: .venv/.installed  ## run every notebook at the quick profile, redraw the figures, show the claims
	@set -o pipefail; $(SNAKEMAKE) --config profile=quick $(QUIETLY)
	@$(BIN)/lossbook claims
	@echo "Executed notebooks: build/notebooks/   figures: figures/   tables: data/results/   claims: data/claims.csv"

test: .venv/.installed  ## lint, tests, and the derivations compared with their committed outputs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(PYTEST) tests
	$(PYTEST) -p no:cacheprovider -W default --nbval --nbval-current-env --nbval-cell-timeout 300 \
		--nbval-sanitize-with tests/nbval_sanitize.cfg notebooks/derivations

lab: .venv/.installed  ## open JupyterLab on the first notebook
	$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

figures: .venv/.installed  ## redraw every figure of the committed tables, without training
	$(BIN)/lossbook figures
	@echo "Figures: figures/"

bench: .venv/.installed  ## measure the speed tables, all sides in one run, on an otherwise idle machine
	$(BIN)/lossbook bench

paper: .venv/.installed  ## run the experiments at the paper profile, on the GPU where there is one; resumes
	@set -e; for experiment in $(EXPERIMENTS); do $(BIN)/lossbook run $$experiment --profile paper; done

lock: $(BIN)/uv  ## pin the requirements again after a change of pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras pyproject.toml -o requirements.lock \
		--no-header --no-annotate

clean:  ## remove what was built; .venv, data and committed files stay
	rm -rf build .snakemake .pytest_cache .ruff_cache .hypothesis

.venv/.installed: pyproject.toml requirements.lock | $(BIN)/uv
	@echo "Setting up .venv from requirements.lock: a minute from a warm cache, else a download of a few GB on Linux."
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "lossbook needs Python 3.11 to 3.13, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." \
			"Name another one, such as: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' comes without the venv module. Install it (Debian and Ubuntu: apt install python3-venv)," \
			"or name another Python: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall 'uv>=0.5'
