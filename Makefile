# make setup: .venv with the requirements; make train: the same, then the default run.
# make dev: requirements-dev.txt, too; make test, make lint: the same, and the tests, or ruff and mypy.
# make test-docs: the commands of README and guide, as written.
# make test-cluster: requirements-cluster.txt, too, and the tests of sweep.py and search.py on a small cluster.
# PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3

setup: .venv/installed

dev: .venv/dev

train: .venv/installed
	.venv/bin/python q_agent_train.py

test: .venv/dev
	.venv/bin/python -m pytest tests/

test-docs: .venv/dev
	.venv/bin/python -m pytest tests/ -m docs

test-cluster: .venv/cluster
	.venv/bin/python -m pytest tests/ -m cluster

lint: .venv/dev
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy .

# .venv/installed is there while the environment is whole: each rule removes it first and makes it again at its end.
# Without it an environment is what an unfinished build left, perhaps of another Python, and is built anew.
.venv/installed: requirements.txt
	@test -e $@ || $(PYTHON) -c "import runtime"  # its one line says which Python is needed
	test -e $@ || $(PYTHON) -m venv --clear .venv
	rm -f $@
	.venv/bin/python -m pip install -q -r requirements.txt
	touch $@

.venv/dev: .venv/installed requirements-dev.txt
	rm .venv/installed
	.venv/bin/python -m pip install -q -r requirements-dev.txt
	touch .venv/installed $@

.venv/cluster: .venv/dev requirements-cluster.txt
	rm .venv/installed
	.venv/bin/python -m pip install -q -r requirements-cluster.txt
	touch .venv/installed .venv/dev $@

.PHONY: setup dev train test test-docs test-cluster lint
