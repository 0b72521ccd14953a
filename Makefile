# Two commands, each with its own set-up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

DATA ?= data
PRECISION ?= bfloat16

.PHONY: demo test test-processors test-slurm check docs study-small clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/hiddenweights sweeps launch quickstart
	$(BIN)/hiddenweights analysis figure quickstart --from runs/wandb

# On three workers, one more than cores, because some tests mostly wait. CAPABILITY=default, avx2 or avx512 runs all
# tests as on a processor without vector instructions, with AVX2, or with those of bfloat16; the first takes longest.
AS_default = ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 HIDDENWEIGHTS_TEST_PRECISION=float32 \
	HIDDENWEIGHTS_TEST_THREADS=1
AS_avx2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 HIDDENWEIGHTS_TEST_PRECISION=float32 \
	HIDDENWEIGHTS_TEST_THREADS=2
AS_avx512 = ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 HIDDENWEIGHTS_TEST_PRECISION=bfloat16 \
	HIDDENWEIGHTS_TEST_THREADS=2
test: $(READY)
	$(if $(CAPABILITY),env OMP_WAIT_POLICY=passive $(or $(AS_$(CAPABILITY)),$(error choices of CAPABILITY: default avx2 avx512))) \
		$(BIN)/python -m pytest -n 3 --dist worksteal \
		$(if $(CAPABILITY),--timeout 1200)

# The tests that rest on the processor's arithmetic, as on older processors and with the other precision and
# number of threads: each value of each at least once. Bfloat16 without its instructions takes minutes.
# Threads that wait without using the processor leave it to others on a busy machine.
PROCESSOR = env OMP_WAIT_POLICY=passive ATEN_CPU_CAPABILITY=$(1) ONEDNN_MAX_CPU_ISA=$(2) HIDDENWEIGHTS_TEST_PRECISION=$(3) \
	HIDDENWEIGHTS_TEST_THREADS=$(4) $(BIN)/python -m pytest -m arithmetic --timeout 1200
test-processors: $(READY)
	$(call PROCESSOR,default,SSE41,float32,1)
	$(call PROCESSOR,avx2,AVX2,bfloat16,1)
	$(call PROCESSOR,avx512,AVX512_CORE,float32,2)
	$(call PROCESSOR,avx512,AVX512_CORE_BF16,bfloat16,2)

# A job on a real Slurm, whose node is lost: a controller and two nodes on this machine. Needs root, slurm-wlm, munge.
test-slurm: $(READY)
	$(BIN)/python -m pytest -m slurm -rs

# The smallest part of the published study (docs/results): CIFAR-10, which torchvision downloads to DATA. On a
# processor without bfloat16 arithmetic take PRECISION=float32.
study-small: $(READY)
	$(BIN)/hiddenweights sweeps launch study_small --set data.root=$(DATA) --set train.precision=$(PRECISION)
	$(BIN)/hiddenweights analysis figure study_small

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in build/site; a warning is an error.
docs: $(READY)
	$(BIN)/python docs/site.py

# The environment: the newest versions that constraints.txt names, which are those that were tested.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Setting up .venv (torch and its libraries: about 6 GB, a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info
