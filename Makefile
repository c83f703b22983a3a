# Settings, all optional: make setup PYTHON=python3.12 EXTRAS=gpu,dev TORCH_INDEX=URL
# Interpreter that makes .venv: the first of these names that is Python 3.11 to 3.13.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$name && break; done)
# cpu or gpu chooses the ONNX Runtime package (never both); dev brings the checks and the tests. What .venv was made
# with stays until other extras are named.
INSTALLED := .venv/.installed
INSTALLED_EXTRAS := $(shell cat $(INSTALLED) 2>/dev/null)
EXTRAS ?= $(if $(INSTALLED_EXTRAS),$(INSTALLED_EXTRAS),cpu,dev)
# Further package index searched for torch. Linux wheels of the default index bring CUDA along, several GB;
# without a GPU, https://download.pytorch.org/whl/cpu gives the small build.
TORCH_INDEX ?=
# Who may open the UI: this machine only. Whoever reaches it can run everything.
UI_HOST ?= 127.0.0.1
UI_PORT ?= 3000
PAGES_PORT ?= 3001
# What the links to reports name: the host of UI_HOST, or this machine's name where that stands for every address.
PAGES_HOST = $(if $(filter 0.0.0.0,$(UI_HOST)),$(shell uname -n),$(UI_HOST))
# Where `make large` puts what it writes, about 30 GB for a while; 64 GB where there is room for all of Scout.
LARGE_SCRATCH ?= /var/tmp
# Further words of `make benchmark`: --models NAME,NAME --rounds N --threads N --scratch DIR (20 GB stay there), and
# --record FILE for a file alone, no page, to which --engines NAME,NAME may be added.
BENCHMARK ?=
# Wheels for a GPU machine without network: its Python, what is installed there, the largest piece in MB, and the compute
# capability of its GPU, 90 for 9.0, where kernels for others are to stay behind.
GPU_PYTHON ?= 3.12
GPU_HAS ?=
GPU_PIECE_MB ?= 1000
GPU_ARCHITECTURE ?=
GPU_WHEELS ?= gpu-wheels
GPU_RECORD ?= gpu-benchmark.json
GPU_TRIAL ?= gpu-trial.jsonl
# Further words of `make gpu-trial`: --models NAME,NAME
TRIAL ?=
ON_GPU = llama4_pipeline_tests/benchmark/on_gpu.sh $(GPU_WHEELS)

BIN := .venv/bin
# What must go before EXTRAS come: the other ONNX Runtime, and for a GPU a PyTorch built for the CPU.
CPU_TORCH = $(BIN)/python -m pip list --disable-pip-version-check 2>/dev/null | sed -n 's/^\(torch\) .*+cpu$$/\1/p'
# Debian's GCC 12.2 drops the stores that describe AMX tiles, since its intrinsic names 8 of their 64 bytes; llama.cpp then
# ends by SIGILL.
AMX_FLAGS = $(if $(findstring llamacpp,$(EXTRAS)),$(if $(shell grep -m 1 amx_tile /proc/cpuinfo 2>/dev/null),-fno-dse))
IN_THE_WAY = $(if $(findstring gpu,$(EXTRAS)),onnxruntime $$($(CPU_TORCH)),onnxruntime-gpu)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-ui test-faults test-cluster conformance large benchmark profile gpu-wheels gpu-benchmark gpu-trial cuda-stand-in quality check ui clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv and install the locked packages

ifneq ($(EXTRAS),$(INSTALLED_EXTRAS))
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make setup: no Python 3.11, 3.12 or 3.13 found; install one or pass PYTHON=PATH" >&2; exit 2; }
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip uninstall --disable-pip-version-check -qq -y $(IN_THE_WAY)
	CXXFLAGS='$(strip $(CXXFLAGS) $(AMX_FLAGS))' \
		$(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[$(EXTRAS)]'
	@echo '$(EXTRAS)' > $@

demo: setup ## Run every stage for the model tiny and print the benchmark table
	$(BIN)/llama4-pipeline run --model tiny

test: setup ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## Run the tests that take minutes: training the embedded model, torch.compile
	$(BIN)/python -m pytest -m slow

test-ui: setup ## Try the UI in Chromium, the nightly schedule and backfills on real processes; writes docs/images
	@command -v chromium >/dev/null || { echo "make test-ui: chromium is missing; apt-get install chromium" >&2; exit 2; }
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints.txt -e '.[$(EXTRAS),test-ui]'
	$(BIN)/python -m pytest -m deployment llama4_pipeline_tests/deployment --screenshots docs/images

test-faults: setup ## Kill processes at random moments of real runs; nothing half made may stay, nothing stuck
	$(BIN)/python -m pytest -m faults llama4_pipeline_tests/faults

test-cluster: setup ## Run the pipeline on two Ray nodes, an S3 server and PostgreSQL (apt-get install postgresql)
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints.txt -e '.[$(EXTRAS),cluster-dev]'
	$(BIN)/python -m pytest -m cluster llama4_pipeline_tests

conformance: setup ## Hold drawn configurations against transformers and write docs/conformance.md
	$(BIN)/python -m pytest -m conformance llama4_pipeline_tests/conformance --conformance-page docs/conformance.md

large: setup ## Export models larger than memory under a limit; writes docs/large-models.md
	$(BIN)/python -m llama4_pipeline_tests.large --scratch $(LARGE_SCRATCH)

benchmark: setup ## Measure every engine in turns; writes docs/results, docs/benchmarks.md and README's table
	$(BIN)/python -m llama4_pipeline_tests.benchmark $(BENCHMARK)

profile: setup ## Account for a decode token kernel by kernel; writes docs/performance.md
	$(BIN)/python -m llama4_pipeline_tests.benchmark.profile

gpu-wheels: setup ## Fetch what a GPU machine without network needs into GPU_WHEELS=gpu-wheels
	rm -rf $(GPU_WHEELS)
	$(BIN)/python -m llama4_pipeline_tests.benchmark.wheels --out $(GPU_WHEELS) --python $(GPU_PYTHON) \
		--has "$(GPU_HAS)" --piece-mb $(GPU_PIECE_MB) $(if $(GPU_ARCHITECTURE),--architecture $(GPU_ARCHITECTURE))

gpu-benchmark: ## On a machine with a GPU: install GPU_WHEELS where they are there, measure, write GPU_RECORD=gpu-benchmark.json
	$(ON_GPU) -m llama4_pipeline_tests.benchmark --device cuda --record $(GPU_RECORD) \
		--scratch $${TMPDIR:-/tmp}/llama4-benchmark $(BENCHMARK)

gpu-trial: ## On a machine with a GPU: try what graphs for it could do otherwise, write GPU_TRIAL=gpu-trial.jsonl
	$(ON_GPU) -m llama4_pipeline_tests.benchmark.trial --out $(GPU_TRIAL) $(TRIAL)

cuda-stand-in: setup ## Open graphs with ONNX Runtime's CUDA provider over stand-ins for CUDA's libraries (cc, 260 MB of wheels)
	$(BIN)/python -m pytest -m cuda_stand_in llama4_pipeline_tests/cuda_stand_in

quality: setup ## Measure every method of quantization on trained models; writes docs/quality.md
	$(BIN)/python -m llama4_pipeline_tests.quality

check: setup ## Check format, lint, types and the Dagster definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	DAGSTER_DISABLE_TELEMETRY=yes $(BIN)/dagster definitions validate -w workspace.yaml

ui: export DAGSTER_HOME ?= $(CURDIR)
ui: export LLAMA4_PIPELINE_PAGES ?= http://$(PAGES_HOST):$(PAGES_PORT)
ui: setup ## Serve the Dagster UI and the reports (UI_HOST=127.0.0.1 UI_PORT=3000 PAGES_PORT=3001)
	@test -e "$$DAGSTER_HOME/dagster.yaml" || cp dagster.yaml "$$DAGSTER_HOME/"
	$(BIN)/llama4-pipeline pages --host $(UI_HOST) --port $(PAGES_PORT) & trap "kill $$!" EXIT; trap exit INT; \
	$(BIN)/dagster dev -w workspace.yaml -h $(UI_HOST) -p $(UI_PORT)

clean: ## Remove .venv and the caches of the checks; artifacts stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find llama4_pipeline llama4_pipeline_tests -name __pycache__ -type d -prune -exec rm -rf {} +
