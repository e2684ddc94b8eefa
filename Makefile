# make setup: .venv with the requirements; make train, make test: the same, then the default run, or the tests.
# PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3

setup: .venv/installed

train: .venv/installed
	.venv/bin/python q_agent_train.py

test: .venv/installed
	.venv/bin/python -m pytest tests/

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -r requirements.txt
	touch $@


.PHONY: setup train test lint
