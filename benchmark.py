"""Speed, side by side: python benchmark.py, and behind that parts, scaling, inference, relatives or learning"""

from runtime.exits import exit_with  # isort: skip  # first: runtime/ says which Python is needed
import importlib.util
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.common import BenchmarkConfig
from benchmarks.compare import compare
from benchmarks.inference import inference
from benchmarks.learning import learning
from benchmarks.parts import parts
from benchmarks.relatives import relatives
from benchmarks.scaling import scaling
from runtime.devices import choose_device, set_up_torch
from runtime.files import writing_output
from runtime.flags import parse

MEASUREMENTS = {
    "compare": compare,
    "parts": parts,
    "scaling": scaling,
    "inference": inference,
    "relatives": relatives,
    "learning": learning,
}


def hardware(device: torch.device) -> str:
    """One line that says what ran: processor or GPU, cores, threads, versions, date."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    models = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    names = ", ".join([*gpu, (models or [platform.machine()])[0]])
    peer = ["stable-baselines3"] if importlib.util.find_spec("stable_baselines3") else []
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "ale-py", "numpy", *peer))
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{names}, {cores}, Python {platform.python_version()}, {packages}"


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
