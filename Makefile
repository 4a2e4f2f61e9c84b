# Every target sets up what it needs and works from a bare clone: `make demo`, `make test`. Another Python: `make test PYTHON=python3.12`.

PYTHON ?= python3
WORKERS ?= 2
# The demo trains with two processes of one thread each where there are two processors: for a small model that is the fastest way.
PROCESSES ?= $(shell test "$$(getconf _NPROCESSORS_ONLN)" -gt 1 && echo 2 || echo 1)

# Data sets: TACIT_DATA, else ../shared/data where that exists, else data.
ifneq ($(wildcard ../shared/data),)
export TACIT_DATA ?= $(abspath ../shared/data)
endif
DATA = $(or $(TACIT_DATA),data)
JOB = $(if $(wildcard $(DATA)/gsm8k/train.jsonl $(DATA)/gsm8k/train.jsonl.gz),gsm8k_steps,sorting)

READY = .venv/.ready
TRL_READY = .venv-trl/.ready
SITE_READY = .venv-docs/.ready
BIN = .venv/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow cover check format docs site bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## warm-start a small model, improve it with GRPO on real input, write a report (about 80 seconds on two cores)
	@echo "demo: $(JOB)$(if $(filter sorting,$(JOB)), (no GSM8K under $(DATA); docs/index.md says where it goes))"
	@if ls -d runs/demo-* >/dev/null 2>&1; then echo "demo: removing the runs of an earlier demo:" runs/demo-*; rm -rf runs/demo-*; fi
	$(BIN)/tacit train recipes/demo/$(JOB)_sft.yaml runtime.processes=$(PROCESSES)
	$(BIN)/tacit train recipes/demo/$(JOB)_grpo.yaml runtime.processes=$(PROCESSES)

test: $(READY) ## the fast suite: CPU, no network (under 6 minutes on 2 cores)
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(READY) ## the slow suite; its browser tests need a chromium
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

cover: $(READY) ## the fast suite with line coverage; fails below 90 % of core, rl and generation
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report=
	$(BIN)/coverage report --include='src/tacit/core/*,src/tacit/rl/*,src/tacit/generation/*' --fail-under=90

check: $(READY) ## format, lint, types, architecture, docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_docs.py -k 'not examples' # those run in `make test`

format: $(READY) ## put code in its format, and repair what ruff can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(READY) ## write the tables of docs/configuration.md from src/tacit/config.py
	$(BIN)/python docs/write_configuration.py

site: $(SITE_READY) ## build the documents and the API reference into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet --strict

bench: $(READY) $(TRL_READY) ## side by side with TRL 1.16 in .venv-trl, growth of cost, decoding, PIPO's step, search, five seeds of sorting; writes results/benchmarks/*.json
	@mkdir -p results/benchmarks
	$(BIN)/python benchmarks/vs_trl.py
	PYTHONPATH=src $(BIN)/python benchmarks/cost_growth.py
	@set -e; for name in sorting_seeds decode parity_trl pipo_step $(if $(wildcard $(DATA)/csfcube),search); do \
		echo "bench: $$name"; \
		python=$(BIN)/python; case $$name in parity_trl) python=.venv-trl/bin/python;; esac; \
		PYTHONPATH=src $$python benchmarks/$$name.py > results/benchmarks/$$name.json.part; \
		mv results/benchmarks/$$name.json.part results/benchmarks/$$name.json; \
		cat results/benchmarks/$$name.json; \
	done

clean: ## remove environments and caches; runs and results stay
	rm -rf .venv .venv-trl .venv-docs site build dist .coverage* .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments: made again when what they are made from changes ---

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,report]'
	@touch $@

$(TRL_READY): benchmarks/requirements-trl.txt
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-trl.txt
	@touch $@

$(SITE_READY): docs/site/requirements.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r docs/site/requirements.txt
	@touch $@
