# make demo | make test: each sets up what it needs, see `make help`.

PYTHON ?= python3
STACK ?= onedl
# 'compiled' for mmcv's own operators, which take a compiler and ten minutes.
OPS ?=
PYTEST_ARGS ?=
# Processes of 2 GB each; a file's tests stay together, for what they share.
JOBS ?= 2
# The tests' tensors are small: threads cost more than they bring.
test: export OMP_NUM_THREADS ?= 1

VENV_onedl := .venv
VENV_openmmlab := .venv-openmmlab
VENV := $(VENV_$(STACK))
ifeq ($(VENV),)
$(error STACK is '$(STACK)', but must be onedl or openmmlab)
endif
RUN := $(VENV)/bin/python
DEMO_CONFIG := configs/picodet_anchorformer_t_digits.py
# Half the config's epochs, and its cosine with them.
DEMO_LENGTH := train_cfg.max_epochs=4 param_scheduler.1.T_max=4 \
	param_scheduler.1.end=4
# More of the kind: .ci/run takes a tenth of the scenes.
DEMO_OPTIONS ?=
DEMO_RUN := work_dirs/demo$(VENV:.venv%=%)

.PHONY: help setup demo test lint docs clean

help:
	@echo 'make setup   make or repair the environment in $(VENV)'
	@echo 'make demo    train a small detector on handwritten digits, and show'
	@echo '             its curve and predictions; an unfinished run goes on,'
	@echo '             a finished one is shown again (make clean demo: anew)'
	@echo 'make test    run the tests (PYTEST_ARGS="-m smoke" for a few, JOBS=0'
	@echo '             in one process, as --pdb needs)'
	@echo 'make lint    check the style of every file'
	@echo 'make docs    build the documentation as a site in build/site'
	@echo 'make clean   remove the demo and build outputs, not the environments'
	@echo
	@echo 'STACK=onedl      the maintained forks of OpenMMLab, in .venv (default)'
	@echo 'STACK=openmmlab  the original libraries, in .venv-openmmlab'
	@echo 'OPS=compiled     compile the operators of mmcv, for detectors beyond ours'
	@echo 'PYTHON=python3.X the Python to set up with, 3.10 to 3.13'
	@echo 'DEMO_OPTIONS=KEY=VALUE  more settings of the demo, as of --cfg-options'

setup:
	@$(PYTHON) tools/misc/bootstrap.py --stack $(STACK) $(if $(OPS),--ops $(OPS))

demo: setup data/digits
	$(RUN) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_RUN) --resume \
		--cfg-options default_hooks.visualization.draw=True $(DEMO_LENGTH) $(DEMO_OPTIONS)
	@echo 'before all further commands: source $(VENV)/bin/activate'

data/digits: | setup
	$(RUN) tools/dataset_converters/make_digits.py --out $@

test: setup
	$(RUN) -m pytest -n $(JOBS) --dist loadfile --durations=10 $(PYTEST_ARGS)

# Always from .venv, which the hooks of pre-commit name.
lint:
	@$(PYTHON) tools/misc/bootstrap.py --stack onedl
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pre-commit run --all-files

docs: setup
	$(RUN) -m mkdocs build --strict

clean:
	rm -rf work_dirs/demo work_dirs/demo-openmmlab data/digits build mmcv_ops/build *.egg-info mmcv_ops/*.egg-info anchorformer_mm/.mim-*
