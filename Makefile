# `make demo` and `make test` need nothing but Python 3.11+ with venv, and a network for pip.
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
BIGMODEL_SOAK_MINUTES ?= 30

.PHONY: demo test lint docs site bench gpu exports mutation attack soak lock install-locked audit sbom clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## train a ResNet on real handwritten digits, then measure it on the test split
	$(BIN)/bigmodel train recipes/image/digits-resnet18.yaml --out runs/demo --overwrite
	$(BIN)/bigmodel eval runs/demo --split test

test: $(VENV)/.installed  ## one thread a process: the tests run side by side, each module's fixtures made once
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
		$(BIN)/pytest -p xdist -p timeout -n 3 --dist loadscope tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bigmodel_cli bigmodel
	$(BIN)/lint-imports

docs: $(VENV)/.installed  ## the tables of README and docs/, made from the registries
	$(BIN)/python docs/tables.py

site: $(VENV)/.installed  ## the documentation as a site, in site/: links checked, nothing fetched
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(VENV)/.installed  ## bigmodel against the script everyone writes, in the same run
	$(BIN)/python benchmarks/run.py

gpu:  ## every CUDA path on one GPU, under 9 minutes, with the Python that has torch for it: DATA=FOLDER, see the file
	$(PYTHON) benchmarks/gpu.py --data $(DATA)

exports: $(VENV)/.installed  ## every export format of five models on MNIST: the tables of benchmarks/RESULTS-export.md
	$(BIN)/python benchmarks/exports.py

mutation: $(VENV)/.installed  ## which tests cannot fail: small changes of the source that none of them notices
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutation.py

attack: $(VENV)/.installed  ## hostile files for every reader: benchmarks/RESULTS-attack.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/attack.py

soak: $(VENV)/.installed  ## the fault and fuzz figures in full
	BIGMODEL_SOAK=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --timeout 3600 --ignore tests/faults/test_results.py \
		tests/faults tests/fuzz tests/equivalence tests/serve tests/models/test_published_start.py \
		tests/models/test_published_walk.py \
		$$(grep -rl SOAK --include='test_*.py' tests/commands tests/compress tests/core tests/export tests/models \
		tests/parallel tests/project)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/chaos.py --minutes $(BIGMODEL_SOAK_MINUTES)
	$(BIN)/pytest -q tests/faults/test_results.py

lock: $(VENV)/.installed  ## constraints.lock: every installed package with its hash, for this platform
	mkdir -p build
	$(BIN)/pip freeze --exclude-editable --all > build/installed.txt
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) --dry-run --ignore-installed --no-deps \
		--report build/report.json -r build/installed.txt
	$(BIN)/python .ci/lock.py build/report.json constraints.lock

install-locked:  ## into a new .venv, only files whose hashes are in constraints.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) --require-hashes --no-deps -r constraints.lock
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) --no-deps -e .
	touch $(VENV)/.installed

build/tools/.installed:
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip install -q --disable-pip-version-check $(PIP_FLAGS) pip-audit cyclonedx-bom
	touch $@

audit: build/tools/.installed  ## known vulnerabilities of the locked packages; needs a network
	build/tools/bin/pip-audit --require-hashes --disable-pip -r constraints.lock

sbom: build/tools/.installed  ## build/sbom.json: the locked packages as a CycloneDX bill of materials
	build/tools/bin/cyclonedx-py requirements constraints.lock --output-format JSON --output-file build/sbom.json

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
