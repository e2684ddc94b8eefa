# make setup: .venv with the requirements; make train, make test: the same, then the default run, or the tests.
# make test-cluster: requirements-cluster.txt, too, and the tests of sweep.py and search.py on a small cluster.
# PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3

setup: .venv/installed

train: .venv/installed
	.venv/bin/python q_agent_train.py

test: .venv/installed
	.venv/bin/python -m pytest tests/

test-cluster: .venv/cluster
	.venv/bin/python -m pytest tests/ -m cluster

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -r requirements.txt
	touch $@

.venv/cluster: .venv/installed requirements-cluster.txt
	.venv/bin/pip install -q -r requirements-cluster.txt
	touch $@

.PHONY: setup train test test-cluster lint
