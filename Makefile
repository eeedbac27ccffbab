# `make` lists the targets. PYTHON, VENV, DATA, ARGS, RUNS and NB can be set: make demo DATA=/data/nih PYTHON=python3.12
VENV ?= .venv
PYTHON ?= python3
BIN = "$(VENV)/bin"
export PYTHON
.DEFAULT_GOAL := help
.PHONY: help env demo test faults lab twice newcomer gpu docs report notebooks prepare clean

help:       ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
env:        ## the Python environment, in VENV (.venv); renewed when settings.ini changes
	@bash .ci/env.sh "$(VENV)"
demo: env   ## the whole study, small: DATA=folder takes real images; ARGS=... goes to cxr_demo
	@$(BIN)/cxr_demo $(if $(DATA),--data "$(DATA)") $(ARGS)
test: env   ## every check, with a count at the end; the longest take turns by commit, ARGS=--all runs all of them
	@$(BIN)/python .ci/test.py $(ARGS)
faults: env ## hurt real runs in every way we know (kill, full disk, flipped bits ...): about five minutes
	@$(BIN)/python tests/faults.py $(ARGS)
lab: env    ## JupyterLab, for this machine only, with a token; ARGS='--port=9000 ...' goes to it
	@$(BIN)/python .ci/lab.py $(ARGS)
twice: env  ## every notebook twice, in a fresh clone without NIH's data: about three hours; or NB='nbs/index.ipynb ...'
	@$(BIN)/python .ci/twice.py $(NB)
newcomer: env ## from git clone to ten reviewed images, timed, in Chromium; ARGS=--install times the environment too
	@$(BIN)/python tests/newcomer.py $(ARGS)
gpu: env    ## measure this machine's accelerator: correctness, speed, limits; ten minutes, one JSON for a page
	@$(BIN)/python nbs/benchmarks/_gpu.py $(ARGS)
docs: env   ## the site, in _docs
	@$(BIN)/python .ci/docs.py
report: env ## the manuscript of report/, filled from the runs in RUNS (_runs)
	@$(BIN)/python .ci/manuscript.py $(RUNS)
notebooks: env ## run the notebooks again to renew their outputs: all, or NB='nbs/4_training/01_losses.ipynb ...'
	@$(BIN)/python .ci/notebooks.py $(NB) && $(MAKE) prepare
prepare: env ## modules, clean notebooks, README.md and drawings from the notebooks
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/python .ci/readme.py && $(BIN)/python nbs/explanations/_drawing.py
clean:      ## remove what was built (not the environment, not _runs and _data)
	@rm -rf _docs _proc nbdev.yml .quarto build dist .pytest_cache
