# Each target sets up what it needs. `make PYTHON=python3.12 VENV=/tmp/venv test` works.
# Written for GNU make 3.81 (macOS) and later.

PYTHON ?= python3
VENV ?= .venv

PY = $(VENV)/bin/python
STAMP = $(VENV)/.installed
PEERS = $(VENV)/.peers
RUN = runs/cpu
CORPUS = $(PY) -c 'import sys; sys.tracebacklimit = 0; from tinygpt_lib import \
load_shakespeare as load; print(f"corpus: {len(load()):,} characters")'

# Notebooks run in notebooks/, so a relative folder would be another one there.
ifneq ($(TINYGPT_DATA),)
ifeq ($(filter /%,$(firstword $(TINYGPT_DATA))),)
override TINYGPT_DATA := $(CURDIR)/$(TINYGPT_DATA)
endif
export TINYGPT_DATA
endif

.PHONY: help run test learn check lab notebooks text export bench site clean env corpus
.NOTPARALLEL:

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

run: env ## train the small GPT (two minutes on two cores) and print what it writes
	@if [ -f $(RUN)/training.safetensors ]; \
	then $(PY) -m tinygpt_lib train --out $(RUN) --resume; \
	else $(CORPUS) && $(PY) -m tinygpt_lib train --out $(RUN) --preset cpu; fi
	@$(PY) -m tinygpt_lib sample $(RUN) --tokens 600

test: corpus ## check the library against the notebooks, run all tests and all notebooks
	@$(PY) tools/test.py

learn: env ## your workbooks: how far you are, or CHAPTER=03 (OPEN=1, SCRIPT=1)
	@$(PY) tools/learn.py $(CHAPTER) $(if $(filter-out 0,$(SCRIPT)),--script)
	@$(if $(and $(CHAPTER),$(filter-out 0,$(OPEN))),$(PY) -m jupyterlab \
	learn/$(CHAPTER)_*.ipynb)

check: env ## say which holes of your workbooks are open, wrong or right
	@$(PY) tools/learn.py --check $(CHAPTER)

lab: corpus ## open the course in JupyterLab
	GOMP_SPINCOUNT=$${GOMP_SPINCOUNT-1000} $(PY) -m jupyterlab notebooks/01_text.ipynb

notebooks: corpus ## run the notebooks whose text changed (ALL=1: all of them)
	$(PY) tools/export.py
	$(PY) tools/run.py $(if $(filter-out 0,$(ALL)),--all)

text: env ## bring edits made in Jupyter into notebooks/text
	$(PY) tools/run.py --text

export: env ## write the library from the notebooks
	$(PY) tools/export.py

bench: corpus $(PEERS) ## measure against peers (20 minutes): NANOGPT=path MINBPE=path
	$(PY) benchmarks/bench.py $(if $(NANOGPT),--nanogpt "$(NANOGPT)") \
	$(if $(MINBPE),--minbpe "$(MINBPE)") $(if $(ONLY),--only $(ONLY)) \
	$(if $(REPEATS),--repeats $(REPEATS))

site: env ## build the course as static pages, in build/site
	$(PY) site/build.py

clean: ## remove the environment and caches; keep runs/, learn/, notebooks, the corpus
	@if [ -f $(STAMP) ]; then echo "removing $(VENV)"; rm -rf $(VENV); fi
	@echo "removing caches and build products"
	@rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@for d in tinygpt_lib tests tools benchmarks notebooks; do \
	find $$d -name __pycache__ -o -name .ipynb_checkpoints; done | xargs rm -rf

env: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@command -v $(firstword $(PYTHON)) > /dev/null || { echo "error: no $(PYTHON) here:" \
	"name a Python from 3.11 to 3.13 with PYTHON=python3.12, say" >&2; exit 1; }
	@$(PYTHON) tools/install.py "$(VENV)"
	@touch $@

# Peers that can't be had are no reason to stop: they are skipped by name.
$(PEERS): $(STAMP)
	-@$(PY) tools/install.py "$(VENV)" -e '.[bench]' && touch $@

corpus: env
	@$(CORPUS)
