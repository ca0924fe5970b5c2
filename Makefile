# RET-CLIP engine. `make demo` and `make test` set everything up by themselves; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MANIFEST ?=
SET ?=

.PHONY: setup demo test test-full test-faults docs lint native gpu-check clean

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml
	@$(PYTHON) engine/prerequisites.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

# photographs -> shards -> training -> runs/demo/report.html; MANIFEST=patients.csv for your own
demo: setup
	$(BIN)/retclip demo $(if $(MANIFEST),--manifest "$(MANIFEST)") $(foreach pair,$(SET),--set $(pair))

test: setup lint
	$(BIN)/python -m pytest

# every combination of ZeRO stages, ranks, precisions and ways to step, launchers that are killed,
# ranks that hang; about half an hour
test-full: setup
	$(BIN)/python -m pytest -m full

# kills at random and at every write, full disks, damaged files, hung ranks; about fifteen minutes
test-faults: setup
	$(BIN)/python -m pytest -m faults

# the pages of docs/ as a site, build/site/index.html
docs: setup
	$(BIN)/python -m mkdocs build --strict --quiet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# finds the field of view for the shard builder, and as a DALI operator; optional
native: setup
	$(BIN)/python -m pip install --quiet --editable '.[native]'
	$(BIN)/cmake -S . -B build/native -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/native --parallel 2

# what needs a GPU: tests, compile gates, probes, benchmarks; from a bare checkout it uses whatever
# Python has torch
gpu-check:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m bench.gpu_check; \
	else PYTHONPATH=. $(PYTHON) -m bench.gpu_check; fi

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
