# `make demo` and `make test` work in a fresh clone with nothing but Python 3.11+: each makes .venv when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo demo-teachers demo-search test test-full lint docs lock clean

help:
	@echo "make demo           install and run the embedded demo: all three stages, four variants, two seeds"
	@echo "make test           install and run the tests"
	@echo "make test-full      every command of README and docs as it stands, hours; DATA=DIR: CIFAR-10 as parquet,"
	@echo "                    ONLY='caption and not torchrun': some of them, as pytest's -k"
	@echo "make lint           ruff, mypy and shellcheck"
	@echo "make docs           build the site of docs/ into site/; a broken link is an error"
	@echo "make demo-teachers  train the demo's tiny CLIP and tiny LLaVA again, from scratch"
	@echo "make demo-search    choose the demo's learning rates again, on the validation split"
	@echo "make lock           write constraints.txt anew from the newest versions that setup.py admits"

$(STAMP): setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/fedscale run configs/demo.yaml

demo-teachers: $(STAMP)
	$(BIN)/python -m fedscale.teachers.shapes

demo-search: $(STAMP)
	$(BIN)/python bench/demo_search.py

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-full: $(STAMP)
	$(BIN)/python -m pytest -m full -v --durations=0 $(if $(DATA),--data '$(DATA)') $(if $(ONLY),-k '$(ONLY)') tests/docs/test_whole.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck .ci/run launch/*.sh launch/slurm/*.sbatch
	$(BIN)/shellcheck --shell=bash --exclude=SC2154 launch/slurm/parts/*.sh  # whose variables other parts set

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --editable '.[dev]'
	$(VENV)-lock/bin/python -m pip freeze --exclude-editable > constraints.txt
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build dist site *.egg-info
