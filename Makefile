# `make demo` and `make test` set up .venv by themselves; it is rebuilt when the pinned set or the project file changes.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export BENTOML_DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
# A waiting OpenMP thread that spins takes its core from the other process on a small machine.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test lint types contracts pytest serve ui bench bench-finetune clean lock docs

demo: $(STAMP)      ## draw specimens, train, register, promote, package, serve once, explain, review
	$(BIN)/lucida demo --out demo

test: lint types contracts pytest  ## everything that CI checks

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

pytest: $(STAMP)
	$(BIN)/pytest

serve: $(STAMP)     ## serve the packaged champion on 127.0.0.1:3000 until Ctrl-C
	$(BIN)/bentoml serve .

ui: $(STAMP)        ## MLflow's pages on 127.0.0.1:5000 until Ctrl-C
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri sqlite:///mlflow.db

bench: $(STAMP)     ## speed beside the peers, as ratios in one run
	$(BIN)/python benchmarks/explain.py

bench-finetune: $(STAMP)  ## training beside the usual loops and fastai, which is fetched into .peers; 15 minutes
	$(BIN)/python benchmarks/finetune.py

docs: $(STAMP)      ## make the pictures and the generated pages of docs/ again
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_pictures.py

clean:              ## remove what was built and trained here, but not .venv
	rm -rf demo specimens mlflow.db mlruns mlartifacts runs rates .peers .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

lock: $(STAMP)      ## resolve constraints.txt again from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group mlflow-core --no-annotate --no-header --upgrade --output-file constraints.txt pyproject.toml

# The pins are the whole closure, so pip installs exactly them, without a resolver.
$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11) and 'camera-lucida needs Python 3.11 or newer')"
	$(BIN)/pip install --quiet --no-deps --requirement constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
