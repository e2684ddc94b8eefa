"""Files and the machine: run folders, tables, checkpoints, whole writes, flags, signals and exits, devices."""
