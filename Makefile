# The commands of this project. Everything runs in .venv, made on first use.
# The first Python 3.11 or 3.12 on the path; override with PYTHON=...
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
REPOSITORY ?= repository
SERVED := digits-ddpm digits-vdrme digits-gdim digits-hat digits-latent checkerboard-vdrme
PROTOS := protos/fewstep.proto protos/inference.proto

.PHONY: demo test check serve zoo format protos audit clean

demo: .venv/installed
	$(BIN)/python -m bench demo

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

serve: .venv/installed
	$(BIN)/python -m export $(SERVED:%=models/zoo/%) --repository $(REPOSITORY) --jobs 2
	$(BIN)/python -m server --repository $(REPOSITORY)

zoo: .venv/installed
	$(BIN)/python -m models.train all --output models/zoo

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# inference.proto gets a descriptor pool of its own: clients of that protocol bring the same names, and a process that
# holds such a client and this server, as the tests do, would otherwise fail to import the second of them.
protos: .venv/installed
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
	sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' protos/inference_pb2.py

# Known flaws of the pinned versions. It asks a public database, so that it is no part of `make check`, which must work
# without a network; the auditor has an environment of its own, as its dependencies are not ours.
audit:
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# constraints.txt pins every version; torch comes first, because a looser request takes gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "fewstep needs Python 3.11 or 3.12 on the path, or PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu,models,bench,dev]'
	touch $@

clean:
	rm -rf .venv .venv-audit out repository
