"""Files and the machine: run folders, tables, checkpoints, whole writes, flags, signals and exits, devices."""

import os

# PyTorch's threads wait for each other after every operation, by default turning on the spot for as long as it takes:
# where other work keeps a core busy, most of the time. torch reads it when it is loaded, so the scripts that train
# import this package first; BENCHMARKS.md has what it does.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
