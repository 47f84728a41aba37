# `make demo` and `make test` set up .venv by themselves; it is rebuilt when the pinned set or the project file changes.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export BENTOML_DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
# A waiting OpenMP thread that spins takes its core from the other process on a small machine.
export OMP_WAIT_POLICY := PASSIVE

# Two processes, each test file whole in one of them: much of a test's time is waiting for a server to start.
TEST_PROCESSES ?= 2

.PHONY: demo test soak lint page types contracts pytest serve ui bench bench-service bench-finetune clean lock lock-service docs networks

demo: $(STAMP)      ## draw specimens, train, register, promote, package, serve once, explain, review
	$(BIN)/lucida demo --out demo

test: lint types contracts pytest  ## what a change can break: linters, types, contracts, behaviour; 15 minutes on two cores

# Those that measure what load does to the service one after the other: they need both cores.
LOAD_TESTS := tests/service/inference/test_load.py tests/service/middleware
soak: $(STAMP)      ## what takes long: overload, full disks, how-to pages, leaks, three-seed bars, peers, fuzzing
	$(BIN)/pytest $(LOAD_TESTS) -m soak --durations=15
	$(BIN)/pytest tests $(addprefix --ignore=,$(LOAD_TESTS)) -m soak -v -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=25

lint: $(STAMP) page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

page:               ## format, lint and type-check service/web; the page itself needs no build step
	@if command -v npm >/dev/null; then \
	    test tests/web/node_modules/.package-lock.json -nt tests/web/package-lock.json || npm ci --silent --no-fund --no-audit --prefix tests/web; \
	    npm run --silent check --prefix tests/web; \
	else echo "service/web was not checked: it needs npm (apt-get install npm)"; fi

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

pytest: $(STAMP)
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=40

serve: $(STAMP)     ## serve the packaged champion on 127.0.0.1:3000 until Ctrl-C
	$(BIN)/bentoml serve .

ui: $(STAMP)        ## MLflow's pages on 127.0.0.1:5000 until Ctrl-C
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 --backend-store-uri sqlite:///mlflow.db

bench: $(STAMP)     ## speed beside the peers, as ratios in one run
	$(BIN)/python benchmarks/explain.py

bench-service: $(STAMP)  ## the service beside LitServe and plain BentoML, which run beside it; 10 minutes
	$(BIN)/python benchmarks/service.py

bench-finetune: $(STAMP)  ## training beside the usual loops and fastai, which is fetched into .peers; 15 minutes
	$(BIN)/python benchmarks/finetune.py

docs: $(STAMP)      ## make the pictures and the generated pages of docs/ again
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_pictures.py

networks: $(STAMP)  ## cut every network of torchvision and one of each module of timm again; half an hour
	$(BIN)/python docs/make_networks.py

clean:              ## remove what was built and trained here, but not .venv
	rm -rf demo specimens mlflow.db mlruns mlartifacts runs rates .peers .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache tests/web/node_modules

lock: $(STAMP)      ## resolve constraints.txt again from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group mlflow-core --no-annotate --no-header --upgrade --output-file constraints.txt pyproject.toml
	$(MAKE) --no-print-directory lock-service

# torch's packages for CUDA are left out: a Bento for the CPU would carry three gigabytes of them.
lock-service: $(STAMP)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group service --constraint constraints.txt --no-annotate --no-header --output-file /dev/stdout | grep -vE '^(nvidia|cuda|triton)' > service/deploy/requirements.txt

# The pins are the whole closure, so pip installs exactly them, without a resolver.
$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11) and 'camera-lucida needs Python 3.11 or newer')"
	$(BIN)/pip install --quiet --no-deps --requirement constraints.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
