# Every target makes .venv first, from pyproject.toml under the pinned constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RDPM := $(BIN)/rdpm
DEMO := configs/digits
PHOTOS := configs/photos
IMAGENET_CONFIGS := configs/imagenet256
IMAGENET ?= data/imagenet/train
TOKENIZER ?= runs/imagenet256/tokenizer
STORE ?= runs/imagenet256/store

.DEFAULT_GOAL := help
PYTEST := $(BIN)/python -m pytest
.PHONY: help install demo demo-photos check test test-long gpu lint format docs tokenize-imagenet ablate-tokenizer compare clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

install: $(VENV)/.installed ## make .venv with everything in it
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "installed; next: source $(BIN)/activate"

demo: install ## the whole road on scikit-learn's digits: images to runs/demo/report.html, at most 15 minutes on 2 cores
	$(RDPM) run $(DEMO)

demo-photos: install ## the same road on colour crops of real photographs: runs/photos/report.html, about 25 minutes on 2 cores
	$(RDPM) run $(PHOTOS)

tokenize-imagenet: install ## encode IMAGENET=folder, tar or Parquet with TOKENIZER=folder into STORE=folder or URL
	$(RDPM) tokenize $(IMAGENET_CONFIGS)/store.yaml "images=$(IMAGENET)" "tokenizer=$(TOKENIZER)" "out=$(STORE)"

ablate-tokenizer: install ## the paper's Table 2 on the digits: runs/ablation/table2.md and .png, under 40 minutes on 2 cores
	$(RDPM) prepare digits $(DEMO)/data.yaml
	$(RDPM) ablate-tokenizer $(DEMO)/ablation.yaml

compare: install ## RDPM beside its rivals on the digits: runs/compare/comparison.md and .png, at most 3 hours on 2 cores
	$(RDPM) prepare digits $(DEMO)/data.yaml
	$(RDPM) compare $(DEMO)/compare.yaml

check: lint ## lint and the quick tests, about two minutes on 2 cores: before every commit
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not long"

test: install ## the test suite, about 7 minutes on 2 cores
	$(PYTEST) -n 3 --dist worksteal

test-long: install ## the tests that take minutes each
	$(PYTEST) -m long

gpu: ## what only a GPU can show: tests, benchmarks, the tables of docs/benchmarks.md; GPU="--minutes 9.5" for a part of it
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu $(GPU)

docs: install ## the site of these pages: site/index.html; a dead link is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs site

lint: install ## format check, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## delete .venv, site, runs/demo and runs/photos
	rm -rf $(VENV) site runs/demo runs/demo.* runs/photos
