# Two commands matter: `make run` serves the demo, `make test` runs the whole suite.
# Both set up what they need first; a second set-up takes a fraction of a second.

.DEFAULT_GOAL := help
SHELL := /bin/bash

# A clone keeps to itself: its base model, adapters and records stand in .stacked, not in HOME.
export STACKED_DATA_DIR ?= $(CURDIR)/.stacked

# Bytecode is kept in .venv: to compile vLLM and torch takes each process ten seconds.
export PYTHONDONTWRITEBYTECODE :=

# A version of vLLM other than the one in constraints/ has a .venv of its own.
export VLLM
BIN := .venv$(VLLM:%=-%)/bin

# The oldest vLLM that every test run must pass on; constraints/ has the versions of its set-up.
OLDEST := 0.27.1

.PHONY: help setup tools run test test-oldest clients bench lock lint format clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24
	@echo
	@echo '  make run ARGS="--port 9000"     passes options to `stacked serve`'
	@echo '  make test ARGS="-k routing"     passes options to pytest'
	@echo '  make test VLLM=0.27.1           on that version of vLLM, in .venv-0.27.1'
	@echo '  make setup DEV=1                also installs what tests need'
	@echo '  STACKED_ENGINE=cpu make setup   chooses the CPU build of vLLM (or cuda) by hand'
	@echo '  UNPINNED=1 make setup           takes the versions of the day, and lists what moved'

setup: ## .venv, vLLM (CUDA build where a GPU is found, else CPU), the demo base
	@bash scripts/setup.sh $(if $(DEV),dev)

tools: # what tests, checks and benchmarks need as well
	@bash scripts/setup.sh dev

run: setup ## serve configs/demo.yaml on 127.0.0.1:8080
	@exec $(BIN)/stacked serve configs/demo.yaml $(ARGS)

# Two workers, see tests/workers.py; tests that ARGS chooses run in one process.
test: tools $(if $(VLLM),,lint) ## lint, types and every test, real engine included
	$(BIN)/pytest $(or $(ARGS),-n 2 --dist loadfile --no-loadscope-reorder)

test-oldest: ## the tests marked `oldest` on the oldest vLLM, with one engine
	@$(MAKE) --no-print-directory test VLLM=$(OLDEST) ARGS="-m oldest tests/engine tests/api $(ARGS)"

clients: tools ## LangChain, LiteLLM, openai-node, … against the demo; installs them in .cache
	$(BIN)/pytest -m long tests/clients $(ARGS)

bench: tools ## short forms of all four benchmarks, 10 minutes; figures go to build/bench
	@mkdir -p build/bench
	$(BIN)/stacked bench offline --base tiny --adapters 1,slots,slots+1,2xslots --slots 4 \
	  --rounds 2 --together --peer vllm $(call bench_files,offline)
	$(BIN)/stacked bench online --base tiny --clients 16 --starts 1 --rounds 2 --together \
	  --engine max_model_len=512 --peer vllm $(call bench_files,online)
	$(BIN)/stacked bench swap --gaps --base tiny --adapters 6 --rank 8 --repeats 2 --steady 5 \
	  --engine max_model_len=1024 --peer vllm $(call bench_files,swap)
	$(BIN)/stacked bench start --base tiny --groups 1,50 --peer vllm $(call bench_files,start)

bench_files = --json build/bench/$(1).json --table build/bench/$(1).md --plot build/bench/$(1).svg

lock: ## renew constraints/, the versions that set-ups install
	@bash scripts/lock.sh

lint: tools ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: tools ## put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and every cache; keeps the data in .stacked
	rm -rf .venv .venv-* .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also remove .stacked: the base model and everything that was served
	rm -rf .stacked
