"""Setting up: which Python is needed, and that the Makefile trusts no environment that was left unfinished."""

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

# Stands in for a Python and for that of its environments. As with a real one, an environment that is there keeps its
# Python unless it is cleared. Installing fails while there is a file `offline`.
PYTHON = f"""#!/bin/sh
case "$1 $2" in
    "-c "*) exec {sys.executable} -c "import sys; sys.version_info = VERSION; $2" ;;
    "-m venv")
        [ "$3" = --clear ] && rm -rf .venv
        mkdir -p .venv/bin
        cp -n "$0" .venv/bin/python
        cp -n "$0" .venv/bin/pip ;;
    *) echo "VERSION $*" >>log; [ ! -e offline ] ;;
esac
"""
REQUIREMENTS = {"setup": "", ".venv/dev": "-dev", ".venv/cluster": "-cluster"}  # what each target installs
SCRIPTS = [path for path in ROOT.glob("*.py") if '__name__ == "__main__"' in path.read_text()]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with two interpreters in it, python3.10 and python3.12."""
    for name in ("Makefile", "runtime/__init__.py", *(path.name for path in ROOT.glob("requirements*.txt"))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for minor in (10, 12):
        (tmp_path / f"python3.{minor}").write_text(PYTHON.replace("VERSION", f"(3, {minor})"))
        (tmp_path / f"python3.{minor}").chmod(0o755)
    return tmp_path


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Not as a part of the make that may have started the tests, whose flags would hold, too.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=clone, env=env, capture_output=True, text=True)


def edit(requirements: Path) -> None:
    time.sleep(0.02)  # a file's time has the resolution of the kernel's clock
    requirements.touch()


def environment_is_whole(clone: Path) -> bool:
    """Whether the environment is of Python 3.12, has nothing of an earlier one, and `make` would do nothing to it."""
    of_312 = "(3, 12)" in (clone / ".venv" / "bin" / "python").read_text()
    return of_312 and not (clone / ".venv" / "stale").exists() and make(clone, "-q", "setup").returncode == 0


def test_an_older_python_is_refused_in_one_line_before_anything_is_made(clone: Path) -> None:
    result = make(clone, "setup", "PYTHON=./python3.10")
    assert result.returncode == 2
    error, of_make = result.stderr.splitlines()
    assert error.startswith("error: Python 3.11 or later is needed, this is ")
    assert of_make.startswith("make: ***")
    assert not (clone / ".venv").exists()
    assert make(clone, "setup", "PYTHON=./python3.12").returncode == 0
    assert environment_is_whole(clone)


@pytest.mark.parametrize("killed_in", ["venv", "pip"])
def test_an_environment_whose_build_did_not_finish_is_built_anew(clone: Path, killed_in: str) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "stale").touch()
    if killed_in == "pip":
        shutil.copy(clone / "python3.10", clone / ".venv" / "bin" / "python")
    assert make(clone, "setup", "PYTHON=./python3.12").returncode == 0
    assert environment_is_whole(clone)


def test_a_failed_install_of_newer_or_more_requirements_is_not_trusted(clone: Path) -> None:
    assert make(clone, "setup", "PYTHON=./python3.12").returncode == 0
    for target, name in REQUIREMENTS.items():
        (clone / ".venv" / "stale").touch()
        edit(clone / f"requirements{name}.txt")
        (clone / "offline").touch()
        assert make(clone, target, "PYTHON=./python3.12").returncode != 0
        assert make(clone, "-q", "setup").returncode == 1
        (clone / "offline").unlink()
        assert make(clone, target, "PYTHON=./python3.12").returncode == 0
        assert environment_is_whole(clone)


def test_newer_requirements_are_installed_into_a_whole_environment_with_its_own_python(clone: Path) -> None:
    """Neither is what the user has added to it lost, nor need PYTHON be typed again."""
    assert make(clone, ".venv/cluster", "PYTHON=./python3.12").returncode == 0
    (clone / ".venv" / "added").touch()
    edit(clone / "requirements.txt")
    (clone / "log").unlink()
    assert make(clone, ".venv/cluster", "PYTHON=./python3.10").returncode == 0
    assert (clone / ".venv" / "added").exists()
    assert [line.split(" -r ") for line in (clone / "log").read_text().splitlines()] == [
        ["(3, 12) -m pip install -q", f"requirements{name}.txt"] for name in REQUIREMENTS.values()
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_in_one_line_which_python_they_need(script: Path) -> None:
    ast.parse(script.read_text(), feature_version=(3, 9))  # else an old Python ends before it runs anything
    program = "import sys, runpy; sys.version_info = (3, 10); del sys.argv[0]; "
    program += "sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", program, str(script), "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: Python 3.11 or later is needed, this is ")
