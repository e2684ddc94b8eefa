"""Speed, side by side: python benchmark.py compare, parts, scaling, inference, relatives or learning"""

from runtime.exits import exit_with  # isort: skip  # first: runtime/ says which Python is needed
import os
import platform
import time
from importlib.metadata import version

import torch

from benchmarks.common import BenchmarkConfig
from benchmarks.inference import inference
from benchmarks.learning import learning
from benchmarks.parts import parts
from benchmarks.rates import compare, relatives, scaling
from runtime.devices import choose_device, set_up_torch
from runtime.flags import parse

MEASUREMENTS = {measure.__name__: measure for measure in (compare, parts, scaling, inference, relatives, learning)}


def main() -> None:
    config = parse(BenchmarkConfig)
    config.check()
    set_up_torch(deterministic=False)
    device = choose_device(config.device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    packages = [f"{package} {version(package)}" for package in ("torch", "ale-py", "numpy")]
    print(hardware, cores, f"Python {platform.python_version()}", *packages, time.strftime("%Y-%m-%d"), sep=", ")
    MEASUREMENTS[config.what](config)


if __name__ == "__main__":
    exit_with(main, smaller="--replay-size or --num-envs")
