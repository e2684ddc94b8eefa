"""Speed, side by side: python benchmark.py compare, parts, scaling, inference, relatives or learning"""

from runtime.exits import exit_with  # isort: skip  # first: runtime/ says which Python is needed
import importlib.util
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.common import PEER, BenchmarkConfig
from benchmarks.compare import compare
from benchmarks.inference import inference
from benchmarks.learning import learning
from benchmarks.parts import parts
from benchmarks.relatives import relatives
from benchmarks.scaling import scaling
from runtime.devices import choose_device, set_up_torch
from runtime.files import writing_output
from runtime.flags import parse

MEASUREMENTS = {measure.__name__: measure for measure in (compare, parts, scaling, inference, relatives, learning)}


def hardware(device: torch.device) -> str:
    """One line that says what ran: processor or GPU, cores, threads, versions, date."""
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    peer = ["stable-baselines3"] if importlib.util.find_spec(PEER) else []
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "ale-py", "numpy", *peer))
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{gpu}{processor_name()}, {cores}, Python {platform.python_version()}, {packages}"


def processor_name() -> str:
    """The processor's model, where Linux tells it; else its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    config = parse(BenchmarkConfig)
    config.check()
    set_up_torch(deterministic=False)
    print(hardware(choose_device(config.device)), time.strftime("%Y-%m-%d"), sep=", ")
    result = MEASUREMENTS[config.what](config)
    if config.json:
        with writing_output(config.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    exit_with(main, smaller="--replay-size or --num-envs")
