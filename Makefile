# `make help` lists what there is to do. Everything runs in .venv, which is made at the first call.
# (Written for the make that macOS ships, version 3.81, too.)

SHELL := /bin/bash
CONFIG ?= configs/embedded.yaml
MINUTES ?= 20
UV_VERSION := 0.13.9
PY := .venv/bin/python

# The same text encoding everywhere, and nothing of the caller's Python set-up inside. Containers often forbid
# bytecode; without it every page and every test's subprocess compiles torch anew, seven seconds each.
export PYTHONUTF8 := 1
unexport PYTHONPATH PYTHONHOME MPLBACKEND VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

# Scripts and the editable install hold absolute paths: in a copied or moved folder, set up anew.
ifneq ($(shell cat .venv/.installed 2>/dev/null),$(CURDIR))
$(shell rm -f .venv/.installed)
endif

.PHONY: help book test record verify bench gpu sweep lab notebooks describe links validate lock clean clean-all

help:  ## this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

book: .venv/.installed  ## execute what changed, render the pages (CONFIG=configs/NAME.yaml: other parameters)
	@$(PY) scripts/book.py $(CONFIG)

test: .venv/.installed  ## style, unit tests, notebook lint, then every notebook against its stored outputs
	@echo "style, unit tests, notebook lint, pages"
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered
	@echo "executing the notebooks against their stored outputs"
	@# Two at a time, a thread each, as above: on two cores faster than one at a time.
	@IPYTHONDIR="$(CURDIR)/_build/ipython" OMP_NUM_THREADS=1 \
	    $(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 1800 \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:cacheprovider -q -n 2 --dist loadfile notebooks

record: .venv/.installed  ## measure what the pages read, into data/results; goes on where it was (PART=...: that part)
	@$(PY) -m thesis_lib.runs.record $(PART)

verify: .venv/.installed  ## measure recorded rows again, drawn anew each time (MINUTES=20, SEED=n repeats a draw)
	@$(PY) -m thesis_lib.runs.verify --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: .venv/.installed  ## time everything beside other libraries (about an hour; ARGS="--quick", "--device cuda")
	@$(PY) benchmarks/bench.py $(ARGS)

# Elsewhere the first line says what is missing, and the second stops.
gpu: .venv/.installed  ## on a machine with CUDA: what is here, its tests, a quick bench, rows measured again (MINUTES=20)
	@$(PY) -m thesis_lib.pages.doctor
	@$(PY) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu needs a GPU with CUDA")'
	@$(PY) -m pytest -q tests/test_cuda.py
	@$(PY) benchmarks/bench.py --device cuda --quick --out _build/speed-cuda.csv
	@$(PY) -m thesis_lib.runs.verify --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

sweep: .venv/.installed  ## explain every network of torchvision, one of each kind of timm's, into data/sweep.csv
	@$(PY) scripts/sweep.py $(ARGS)

lab: .venv/.installed  ## open the notebooks in JupyterLab
	@.venv/bin/jupyter lab notebooks

notebooks: .venv/.installed  ## for authors: execute what changed and store the outputs in notebooks/
	@$(PY) scripts/book.py configs/embedded.yaml --update

describe: .venv/.installed  ## for authors: ro-crate-metadata.json and croissant.json anew from what stands here
	@$(PY) scripts/describe.py

links: .venv/.installed  ## for authors: try every external address that a page names (needs a network)
	@$(PY) scripts/links.py $(ARGS)

validate: .venv/.installed  ## for authors: what others' validators say of workflows, descriptions, spelling (needs a network)
	@$(PY) scripts/validate.py

lock: .venv/.installed  ## for authors: requirements.lock anew from pyproject.toml
	@.venv/bin/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet -o requirements.lock

clean:  ## remove what was built
	rm -rf _build

clean-all: clean  ## remove .venv as well
	rm -rf .venv

.venv/.installed: requirements.lock pyproject.toml
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 none; do \
	    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && break; \
	done; \
	if [ "$$python" = none ]; then \
	    echo "Python 3.11, 3.12 or 3.13 is needed; python3 is: $$(python3 -V 2>&1)." >&2; \
	    echo "If one is elsewhere: make book PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	set -e -o pipefail; \
	echo "setting up .venv with $$("$$python" -V): a few GB to download, about 2 to 10 minutes"; \
	"$$python" -m venv --clear .venv || { rm -rf .venv; \
	    echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	$(PY) -m pip --disable-pip-version-check install --quiet uv==$(UV_VERSION); \
	.venv/bin/uv pip install --python $(PY) --require-hashes -r requirements.lock 2>&1 \
	    | { grep --line-buffered -v '^ [+~-] ' || true; }; \
	.venv/bin/uv pip install --python $(PY) --quiet --no-deps --no-build-isolation -e .; \
	printf %s "$(CURDIR)" > .venv/.installed; \
	echo "set up in $$SECONDS s"
