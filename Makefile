# The front door: make help

PYTHON ?= python3
SCALE ?= laptop
LOSSES ?=
BIN := .venv/bin
PINS := uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help film reproduce smoke test lab check doctor lock bench site

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 12

reproduce: .venv/installed  ## every figure, table and page, at SCALE=laptop (default), smoke or paper; LOSSES=giou,my_module:mine
	$(BIN)/giou-repro sweep sweeps/reproduce.yaml --scale $(SCALE) $(if $(LOSSES),--losses "$(LOSSES)")

smoke: .venv/installed  ## every notebook small, with two losses, in a minute
	$(BIN)/giou-repro sweep sweeps/smoke.yaml

test: .venv/installed  ## the tests
	$(BIN)/python -m pytest -q

lab: .venv/installed  ## JupyterLab on the first notebook
	$(BIN)/jupyter lab notebooks/01_metric.ipynb

bench: .venv/installed  ## this package and comparable ones, timed, in about five minutes; GPU=1 on a GPU
	$(BIN)/python -m benchmarks $(if $(GPU),--gpu)

film: .venv/installed  ## docs/film.gif, the moving picture of the README
	$(BIN)/python -m giou_repro.experiments.film docs/film.gif

site: reproduce  ## the site of README, notebooks and docs, offline in build/site, after what `make reproduce` makes
	$(BIN)/python -m sphinx --quiet docs build/site
	@echo "the site: $(CURDIR)/build/site/index.html"

check: .venv/installed  ## style of code and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

doctor: .venv/installed  ## what is wrong with the environment, and the remedy
	$(BIN)/giou-repro doctor

lock:  ## pin the newest versions that fit pyproject.toml (needs uv)
	$(PINS) --extra all --upgrade -o requirements.lock
	$(PINS) --extra plug -c requirements.lock | grep -vwF "$$(cut -d' ' -f1 requirements.lock)" | sed 's/^opencv-python=/opencv-python-headless=/' > requirements-plug.lock

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@git config filter.nbstripout.clean $(BIN)/nbstripout || true  # see .gitattributes
	@touch $@
