# `make demo` and `make test` do all set-up: whichever runs first makes .venv. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DOCS := $(VENV)/.docs
TESTS ?= tests
JOBS ?= auto
GATE = $(BIN)/python -m pytest -m "not gpu" -s tests/kernels/gate
WITH_TRITON = PYTHONPATH=.triton/$(TRITON)$${PYTHONPATH:+:$$PYTHONPATH}
HAS_TRITON = $(WITH_TRITON) $(BIN)/python -c 'import triton; exit(triton.__version__ != "$(TRITON)")'

.PHONY: demo test lint docs gate gpu gpu-tune bench clean

demo: $(STAMP)
	$(BIN)/baize demo

# passive: threads that wait for each other sleep, where spinning would take the other workers' processors
test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not gpu and not slow" $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(wildcard $(foreach folder,csrc csrc/*,$(folder)/*.h $(folder)/*.cpp))

# The pages of docs/ and the API's as a site in site/: open site/index.html (its search needs `python -m http.server -d site`).
# A link or anchor that leads nowhere is an error.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# every kernel, every shape, compiled for sm_80, sm_89 and sm_90; no GPU needed. TRITON=3.6.0 compiles with that version.
gate: $(STAMP)
ifdef TRITON
	$(HAS_TRITON) 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .triton/$(TRITON) triton==$(TRITON)
	$(HAS_TRITON) || { echo "Triton $(TRITON) is not what .triton/$(TRITON) holds: remove the folder, try again" >&2; exit 1; }
	$(WITH_TRITON) $(GATE)
else
	$(GATE)
endif

# On a machine with a GPU, with the packages it has and no network: what the GPU, the benchmarks and the host's C++ implementations say.
# OUT=FOLDER takes all results, STEPS="decode13b profile" runs some alone; `python benchmarks/gpu_report.py --list` shows them all.
gpu:
	$(PYTHON) benchmarks/gpu_report.py $(if $(OUT),--out "$(OUT)") $(if $(STEPS),--steps $(STEPS)) $(if $(COMMIT),--commit $(COMMIT))

# The launch settings that are fastest on this GPU, of equal bits, as a table.
gpu-tune: STEPS = build tune
gpu-tune: gpu

# The standard set of benchmarks on this CPU, one table at the end; peers where they are installed (pip install '.[peers]').
# PRESET=1b takes the larger model, JSON=FILE keeps the reports, IK_LLAMA=FOLDER is where ik_llama.cpp's binaries are.
PRESET ?= 125m
bench: $(STAMP)
	$(BIN)/python benchmarks/standard.py --preset $(PRESET) $(if $(JSON),--json $(JSON)) $(if $(IK_LLAMA),--ik_llama "$(IK_LLAMA)")

# Torch comes by the constraints file; the package is installed editable, so that a change in Python needs no reinstall.
$(STAMP): pyproject.toml setup.py .ci/constraints.txt $(wildcard csrc/* csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt torch triton
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[test,lint]'
	touch $@

# What the extra asks for beside the package, which $(STAMP) has installed.
$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt 'baize-engine[docs]'
	touch $@

clean:
	rm -rf $(VENV) .triton build site baize_engine/_C*.so *.egg-info
