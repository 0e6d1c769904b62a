# One word per task. `make` lists them.
#   VENV=path     environment to use (default .venv)
#   PYTHON=python interpreter that makes it (default: the first of 3.11 to 3.13 that runs)

VENV ?= .venv
PYTHON ?= $(shell sh tools/find_python.sh)
DEMO ?= demo
DEMO_RUN ?= checkpoints/demo-run
# Millions of tokens that the demo model and its draft learn from, if not their usual 84 and 2.5. A
# hundredth of them shows in minutes that everything works, and gives a model that knows nothing.
DEMO_TOKENS ?=
DRAFT_TOKENS ?=
PORT ?= 8000
# The first is what it is called; the others are what published guides ask for, so that their first
# questions can be pasted as they are.
DEMO_NAMES := demo MiniMaxAI/MiniMax-M3 MiniMaxAI/MiniMax-M2.5 MiniMax-M2.7
# What the demo must get right at least. Processors round otherwise: room for a question, mostly more.
DEMO_FLOORS := published=1 facts=0.95 json=0.95 lookup=0.95 weather=0.95 results=0.95 thinking=0.95 \
	talk=0.95 copy=0.95 unknown=0.95 arithmetic=0.95 needle/1k=0.95 needle/4k=0.95 tools=0.95 \
	nested=0.95 turns=0.95 forms=0.93 parallel=0.93 needle/12k=0.88

BIN := $(VENV)/bin
STAMP := $(VENV)/installed.stamp

.DEFAULT_GOAL := help
.PHONY: help install serve-demo demo-model chat test test-gpu lint check bench size

help:  ## list the tasks
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP)  ## make .venv with everything in it

# The stamp is younger than what was installed, so a second `make install` does nothing, and a
# change of the requirements installs again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; set PYTHON=" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

serve-demo: $(STAMP)  ## serve the demo model on 127.0.0.1
	$(BIN)/mserve serve $(DEMO) $(DEMO_NAMES:%=--served-model-name %) --port $(PORT) \
		--kv-cache-memory-bytes 1G

demo-model: $(STAMP)  ## train the demo model anew, in hours; if cut short, go on
	$(BIN)/python -m demo.train $(DEMO_RUN) $(DEMO_TOKENS:%=--tokens %)
	$(BIN)/python -m demo.plot $(DEMO_RUN)/curve.jsonl $(DEMO_RUN)/curve.svg
	$(BIN)/python -m demo.export $(DEMO_RUN) src/mserve/demo
	$(BIN)/python -m demo.draft.train $(DEMO_RUN) demo/draft/checkpoint $(DRAFT_TOKENS:%=--tokens %)
	$(BIN)/mserve eval demo $(DEMO_FLOORS:%=--min %)

chat: $(STAMP)  ## talk to the server that serve-demo runs
	$(BIN)/mserve chat http://127.0.0.1:$(PORT)

test: $(STAMP)  ## tests that need no GPU
	$(BIN)/python -m pytest tests/plan tests/cpu tests/serve --quiet

test-gpu: $(STAMP)  ## tests that need an NVIDIA GPU
	$(BIN)/python -m pytest tests/gpu --quiet

lint: $(STAMP)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## lint, the repository's own rules, the C++ under sanitizers, then the tests
	$(BIN)/python tools/check_tree.py
	$(BIN)/python tools/check_files.py
	$(BIN)/python tools/sanitize_native.py
	$(MAKE) test

bench: $(STAMP)  ## decode, prefill and latency of the bench presets over HTTP
	$(BIN)/python benchmarks/serve.py

size:  ## lines per folder, and what this change adds
	@$(if $(PYTHON),"$(PYTHON)",python3) tools/size.py
