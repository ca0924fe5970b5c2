# RET-CLIP engine. `make demo` and `make test` set everything up by themselves; see README.md.
# for `make wheelhouse` a version, as 3.12
PYTHON ?= python3
# torch's build: 12, 13 or cpu; by the driver where it is empty
CUDA :=
# a folder that `make wheelhouse` collected: set up from it, without a network
WHEELHOUSE :=
# an index or a folder of wheels that stands in for torch's own index
TORCH_FROM :=
VENV := .venv
BIN := $(VENV)/bin
MANIFEST ?=
OPTIONS ?=
SET ?=

.PHONY: setup demo test test-full test-faults docs lint lock wheelhouse native gpu-check clean

setup: $(VENV)/.complete

# what is named on the command line may differ from what is installed
$(VENV)/.complete: pyproject.toml requirements.lock $(if $(CUDA)$(WHEELHOUSE),named)
	@$(PYTHON) engine/prerequisites.py --cuda "$(CUDA)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m engine.installing --cuda "$(CUDA)" --wheelhouse "$(WHEELHOUSE)" \
		--torch-from "$(TORCH_FROM)"
	@touch $@

.PHONY: named
named:

# every wheel that `make setup WHEELHOUSE=wheelhouse` installs on a machine without a network, for
# Linux on x86-64: make wheelhouse PYTHON=3.12 CUDA=12
wheelhouse:
	python3 -m engine.wheelhouse --python $(PYTHON:python%=%) --cuda $(or $(CUDA),13) \
		--to $(or $(WHEELHOUSE),wheelhouse) --torch-from "$(TORCH_FROM)"

# the newest versions that pyproject.toml allows, for every platform and Python that it names
lock: setup
	$(BIN)/uv pip compile pyproject.toml --upgrade --universal --python-version 3.11 --quiet \
		--no-annotate --custom-compile-command "make lock" --output-file requirements.lock \
		--extra train --extra train-cuda12 --extra test --extra native

# photographs -> shards -> training -> runs/demo/report.html; MANIFEST=patients.csv for your own,
# with further words of `retclip demo` in OPTIONS
demo: setup
	$(BIN)/retclip demo $(if $(MANIFEST),--manifest "$(MANIFEST)") $(OPTIONS) \
		$(foreach pair,$(SET),--set $(pair))

# in two processes: most tests wait for processes of their own
test: setup lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

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
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[native]'
	$(BIN)/cmake -S . -B build/native -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/native --parallel 2

# what needs a GPU: tests, compile gates, probes, benchmarks; from a bare checkout it uses whatever
# Python has torch
gpu-check:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m bench.gpu_check; \
	else PYTHONPATH=. $(PYTHON) -m bench.gpu_check; fi

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
