# Every target but gpu and clean first sets up .venv, again when what it is made of has changed.
PYTHON ?= python3
VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
# 0.0.0.0.14 lies beside the environment, where PYTHONPATH puts it before 2.0.0
LEGACY := $(VENV)/spikingjelly-0.0.0.0.14
NORSE := $(VENV)/norse-alone
DOCS := $(VENV)/docs
VISION := $(VENV)/vision

# modules are compiled once, where they are imported: not by each process of a test, and not all that
# pip installs (it reads "no" as its --no-compile)
unexport PYTHONDONTWRITEBYTECODE
export PIP_NO_COMPILE := no

# one test process for each core, and each of them on one
PARALLEL := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist worksteal

.PHONY: demo report environments test test-slow test-norse lava lava-environment neurobench nir-readers toolchains vision docs lint golden gpu clean

demo: $(VENV)/.stamp
	$(PY) examples/demo.py

report: $(VENV)/.stamp
	$(PY) examples/report.py

test: $(VENV)/.stamp
	@echo "== on spikingjelly 0.0.0.0.14, the tests that touch the simulator"
	@PYTHONPATH="$(LEGACY)" SPIKINGJELLY_VERSION=0.0.0.0.14 $(PARALLEL) \
		-m "spikingjelly and not slow" $$(grep -l "mark.spikingjelly" tests/test_*.py)
	@echo "== on spikingjelly 2.0.0, all"
	@SPIKINGJELLY_VERSION=2.0.0 $(PARALLEL) -m "not slow"

test-slow: $(VENV)/.stamp
	@SPIKINGJELLY_VERSION=2.0.0 $(PY) -m pytest -q -m slow

# The extra by itself, as a user of Norse installs it: it leaves torch as it is pinned, and needs
# neither SpikingJelly nor anything else. NORSE is an environment of its own.
test-norse: $(NORSE)/.stamp
	@$(NORSE_PIP) install --no-deps --force-reinstall . && rm -rf build
	@echo "== with the extra norse and nothing else: $$($(NORSE)/bin/python -m pip freeze | \
		grep -E '^(torch|norse|nir|nirtorch)==' | tr '\n' ' ')"
	@OMP_NUM_THREADS=1 $(NORSE)/bin/python -m pytest -q -n auto --dist worksteal \
		-m "not spikingjelly" tests/test_norse.py

NORSE_PIP := $(NORSE)/bin/python -m pip --quiet --disable-pip-version-check
$(NORSE)/.stamp: $(VENV)/.stamp
	rm -rf "$(NORSE)" && $(PYTHON) -m venv "$(NORSE)"
	tests/share_torch.sh "$(PY)" "$(NORSE)/bin/python"
	$(NORSE_PIP) install -c constraints.txt torch
	$(NORSE_PIP) install -c constraints.txt '.[norse]' hypothesis pytest pytest-xdist
	rm -rf build
	$(NORSE)/bin/python -c 'import torch; v = torch.__version__.split("+")[0]; \
		assert "torch==" + v in open("constraints.txt").read().split(), "the extra brought torch " + v'
	touch $@

lava-environment: $(VENV)/.stamp
	@tests/lava/install.sh "$(VENV)/lava" "$(PYTHON)" "$(PY)"

# All that the other targets install, side by side with make -j
environments: $(VENV)/.stamp $(NORSE)/.stamp $(DOCS)/.stamp lava-environment

# netx files and signGD networks in Lava itself, which goes into an environment of its own
lava: lava-environment
	@echo "== in Lava"
	@LAVA_PYTHON="$(VENV)/lava/bin/python" SPIKINGJELLY_VERSION=2.0.0 $(PARALLEL) \
		tests/test_lava_simulation.py tests/test_verification.py -k "lava"

# NIR files in the readers of other toolchains, snnTorch's among them, which lies beside .venv
nir-readers: $(VENV)/.stamp
	$(PIP) install --no-deps --upgrade --target "$(VENV)/snntorch" snntorch==1.0.0
	@echo "== NIR files in other readers"
	@PYTHONPATH="$(VENV)/snntorch" SPIKINGJELLY_VERSION=2.0.0 $(PARALLEL) tests/test_nir_readers.py

# The site of the documentation, in site/, in an environment of its own: torch, Norse and the extra
# docs. Every link and anchor within the site is checked, and that nothing lost its address.
SPHINX = mkdir -p .cache/docs/pages && "$(DOCS)/bin/python" -m sphinx -q -j auto -n -W --keep-going -c docs
docs: $(DOCS)/.stamp
	@rm -rf site && $(SPHINX) .cache/docs/pages site
	@PYTHONPATH=.cache/docs/package "$(DOCS)/bin/python" docs/tables.py --check
	@"$(DOCS)/bin/python" docs/addresses.py site
	@echo "== the documentation: $(CURDIR)/site/index.html"

# Whether addresses of other sites still lead somewhere, which needs the network
.PHONY: docs-links
docs-links: $(DOCS)/.stamp
	@$(SPHINX) -b linkcheck .cache/docs/pages .cache/docs/links

# .venv's torch where there is one, or is one to be (torch is large)
$(DOCS)/.stamp: pyproject.toml constraints.txt | $(if $(filter environments,$(MAKECMDGOALS)),$(VENV)/.stamp)
	rm -rf "$(DOCS)" && $(PYTHON) -m venv "$(DOCS)"
	[ ! -e "$(VENV)/.stamp" ] || tests/share_torch.sh "$(PY)" "$(DOCS)/bin/python"
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb")) \
		["project"]["optional-dependencies"]["docs"], sep="\n")' > "$(DOCS)/requirements.txt"
	$(DOCS_PIP) install -c constraints.txt torch -r "$(DOCS)/requirements.txt"
	$(DOCS_PIP) install --no-deps norse==1.1.0
	touch $@

DOCS_PIP := $(DOCS)/bin/python -m pip --quiet --disable-pip-version-check

# Networks in NeuroBench, which lies beside .venv with what its benchmarks, models and metrics
# import; the extra brings its data sets' dependencies, too
neurobench: $(VENV)/.stamp
	$(PIP) install --no-deps --upgrade --target "$(VENV)/neurobench" neurobench==2.3.0 snntorch==1.0.0
	@echo "== in NeuroBench"
	@PYTHONPATH="$(VENV)/neurobench" SPIKINGJELLY_VERSION=2.0.0 $(PARALLEL) tests/test_neurobench.py

# The tests of the targets lava, nir-readers and neurobench in one session
toolchains: lava-environment
	$(PIP) install --no-deps --upgrade --target "$(VENV)/neurobench" neurobench==2.3.0 snntorch==1.0.0
	@echo "== in Lava, in other readers of NIR, in NeuroBench"
	@PYTHONPATH="$(VENV)/neurobench" LAVA_PYTHON="$(VENV)/lava/bin/python" \
		SPIKINGJELLY_VERSION=2.0.0 $(PARALLEL) tests/test_lava_simulation.py \
		tests/test_verification.py::test_netx_files_in_lava tests/test_nir_readers.py \
		tests/test_neurobench.py

# Networks of torchvision, timm and transformers, and weights that packages bring. 6 GB, so it is an
# environment that neither `environments` nor CI sets up; where it is, CI uses it. The package comes
# from .venv, with its kernels.
vision: $(VENV)/.stamp $(VISION)/.stamp
	@echo "== real networks"
	@PYTHONPATH="$(VENV)/mypy" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VISION)/bin/python -m pytest \
		-q -n auto --dist worksteal -m vision tests/test_vision.py tests/test_imagenet_scripts.py

VISION_PIP := $(VISION)/bin/python -m pip --quiet --disable-pip-version-check
$(VISION)/.stamp: tests/vision/requirements.txt tests/vision/alone.txt | $(VENV)/.stamp
	$(PYTHON) -m venv "$(VISION)"
	$(VISION_PIP) install -r tests/vision/requirements.txt
	$(VISION_PIP) install --no-deps -r tests/vision/alone.txt
	touch $@

lint: $(VENV)/.stamp
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@"$(VENV)/bin/codespell"
	@$(PY) -m mypy
	@"$(VENV)/bin/lint-imports" --no-cache --no-logo

# What the package computes and writes, row by row against the revision BASE; ONLY chooses cases
golden: $(VENV)/.stamp
	@SPIKINGJELLY_VERSION=2.0.0 $(PY) tests/golden.py compare --base "$(BASE)" \
		--only "$(ONLY)" --jobs $(or $(JOBS),1)

# On a machine with a GPU, torch for CUDA and CuPy, which PYTHON has: checks, then times.
gpu:
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf "$(VENV)" .cache site build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by its pin. The simulators come without their dependencies, of which torchvision
# would replace torch; the third line is what their core, ann2snn and monitor import. SpikingJelly is
# compiled here, since its modules warn of what Python will no longer read, which is an error in the
# tests. NVRTC compiles the GPU kernels in the tests, without a GPU.
KERNELS := $(wildcard neurons/kernels/*.cuh neurons/kernels/*.cpp neurons/kernels/*.h) \
	neurons/kernels/build.py neurons/nonlinearities.py
$(VENV)/.stamp: pyproject.toml constraints.txt setup.py $(KERNELS)
	$(PYTHON) -m venv "$(VENV)"
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt loguru numpy requests tensorboard tqdm
	$(PIP) install -c constraints.txt -e '.[examples]' codespell hypothesis import-linter mypy pillow pytest pytest-xdist ruff
	$(PIP) install --no-deps 'nvidia-cuda-nvrtc>=13,<14; sys_platform == "linux"'
	$(PIP) install --no-deps --compile spikingjelly==2.0.0
	$(PIP) install --no-deps norse==1.1.0 nir==1.0.8 nirtorch==2.6
	rm -rf "$(LEGACY)"
	$(PIP) install --no-deps --compile --target "$(LEGACY)" spikingjelly==0.0.0.0.14
	mkdir -p "$(VENV)/mypy" && ln -sfn ../.. "$(VENV)/mypy/spikingjelly_signgd"
	touch $@
