"""What happens around the loop: the life of a run, its files, checkpoints, flags, signals, progress, devices."""

import os
import sys

# Every script imports this package first, and the Makefile checks an interpreter with it: a later module would end an
# older Python in an ImportError. This file must be readable to any Python.
if sys.version_info < (3, 11):  # noqa: UP036
    found = "this is " + sys.version.split()[0] + " (" + sys.executable + ")"
    sys.stderr.write("error: Python 3.11 or later is needed, " + found + "; choose one: make setup PYTHON=python3.12\n")
    sys.exit(2)

# PyTorch's threads wait for each other after every operation, by default turning on the spot for as long as it takes:
# where other work keeps a core busy, most of the time. torch reads it when it is loaded, so the scripts that train
# import this package first; BENCHMARKS.md has what it does.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
