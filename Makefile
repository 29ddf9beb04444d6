# Labelgrid. Bare `make` lists the verbs. Those with SPEC take
#   SPEC=experiments/x.yaml [CLUSTER=name] [SET="key=value ..."] [RUN=cell]
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
RUN_PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
SPEC_VERBS := wrangle grid evaluate select predict submission report status plan inspect doctor logs cancel retry prune

.DEFAULT_GOAL := help
# of any other word: which verb it may mean
.DEFAULT:
	@$(if $(wildcard $(RUN_PYTHON)),$(RUN_PYTHON),$(PYTHON)) -m jobs '$@'

.PHONY: help setup demo data models check test coverage lint torture bench bench-gpu pictures $(SPEC_VERBS)

# Side by side. Tests of one xdist_group share a worker; groups begin in the order that tests/conftest.py
# gives them, the longest first. One worker more than cores: that of Slurm mostly waits.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(RUN_PYTHON) -m pytest --maxprocesses 8 --dist loadgroup --no-loadscope-reorder

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z -]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the pinned packages (SITE_TORCH=1: on a site's own torch)

$(READY): setup.cfg pyproject.toml requirements.lock
	@command -v '$(PYTHON)' >/dev/null || \
	  { echo "error: $(PYTHON) is not found; name a Python that is here: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV) with the pinned packages: a few minutes"
	$(PYTHON) -m venv $(if $(SITE_TORCH),--system-site-packages) $(VENV)
	$(RUN_PYTHON) -m pip install --quiet --disable-pip-version-check $(if $(SITE_TORCH),-e '.[train]',-c requirements.lock -e '.[train,test]')
	@touch $@

demo: $(READY) ## draw a data set and run everything on it: no Slurm, no download, no GPU
	@$(RUN_PYTHON) -m jobs demo

data: $(READY) ## download MIRFLICKR-25000 and its annotations into data/raw
	@$(RUN_PYTHON) -m jobs data

models: $(READY) ## search networks and published weights (PATTERN="convnext tiny")
	@$(RUN_PYTHON) -m jobs models $(foreach word,$(PATTERN),'$(word)')

check: lint ## lint and the fast tests: what to run before each commit
	@$(PYTEST) -n $(CORES) -m "not slow" $(TESTS)

test: lint ## lint and all tests, on a real Slurm cluster and in a real browser too (TESTS=path)
	@$(PYTEST) -n $$(($(CORES) + 1)) $(TESTS)

coverage: $(READY) ## all tests with their coverage, which setup.cfg holds at a floor
	@$(PYTEST) -n $$(($(CORES) + 1)) --cov --cov-report=term:skip-covered

lint: $(READY) ## format check, ruff, mypy strict, import contracts
	@$(VENV)/bin/ruff format --check -q . && $(VENV)/bin/ruff check -q . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

pictures: demo ## draw the README's pictures again (needs Chromium)
	@$(RUN_PYTHON) tests/pictures.py

torture: $(READY) ## kill projects 200 times and more, here and on a test cluster, and compare what comes of them
	@LABELGRID_KILLS=$(or $(KILLS),170) LABELGRID_SLURM_KILLS=$(or $(SLURM_KILLS),40) \
	  LABELGRID_DAEMON_KILLS=$(or $(DAEMON_KILLS),50) LABELGRID_SEED=$(or $(SEED),0) \
	  $(RUN_PYTHON) -m pytest -s tests/torture

bench: $(READY) ## measure CPUs, and write the tables of docs/performance.md
	@$(RUN_PYTHON) tests/bench/bench.py

bench-gpu: $(READY) ## measure and check one GPU, and write its tables there
	@$(RUN_PYTHON) tests/bench/gpu.py $(if $(PROFILE),--profile $(PROFILE))

wrangle: ## pack the images and labels a spec needs
grid: ## run or submit every missing cell of a spec, then rank all of them
evaluate: ## decide, measure and rank the finished cells
select: ## pick the cell of the submission (RUN=cell), or the best again (no RUN)
predict: ## score the test images under the selected cell
submission: ## everything up to a checked submission.csv
report: ## write report.html again, and its figures and tables as files
status: ## the status of every cell (WATCH=1 repeats it)
plan: ## the dry run of grid: cells, scripts, hours, cost (SUBMISSION=1: of submission)
inspect: ## how the labels were read, and twelve images with their labels as a picture
doctor: ## check everything that a grid will need (NODE=1: on a node of the cluster too)
logs: ## the end of the right log (RUN=cell)
cancel: ## cancel the active jobs (RUN=cell: those of one cell)
retry: ## train one cell again from the start (RUN=cell)
prune: ## delete what neither a selection nor a resume needs, and packed sets nobody here needs

$(SPEC_VERBS): $(READY)
	@test -n "$(SPEC)" || { echo "error: name a spec: make $@ SPEC=experiments/demo.yaml"; exit 2; }
	@$(RUN_PYTHON) -m jobs $@ '$(SPEC)' $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(SET),--set $(SET)) $(if $(RUN),--run $(RUN)) $(if $(SUBMISSION),--submission) $(if $(NODE),--node)
