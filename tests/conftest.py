"""What several test files need; and one thread for PyTorch: they compare bits, and batches are small."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the processes that tests start inherit it
os.environ.pop("DQN_WEBHOOK_URL", None)  # no chat is told of the runs of tests

# isort: split
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ale_py
import pytest
import torch
from soak import SMALL, start

from config import Hyperparameters
from model import QNetwork
from q_agent_train import Config, set_up
from runtime.checkpoint import save_state_dict
from runtime.exits import exit_with
from training import Training

torch.set_num_threads(1)
pytest.register_assert_rewrite("naive_play")  # its assertions explain themselves, too
for number in (signal.SIGINT, signal.SIGHUP):
    # A suite in the background, or under nohup, ignores them, and so would the processes that tests interrupt; of a
    # handler they inherit nothing.
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)
ROOT = Path(__file__).parent.parent
TINY = replace(SMALL, steps=1_200, replay_size=320, checkpoint_minutes=60.0)
SLOW = {  # files of tests that start other processes, or play and train for long
    *("cluster", "evaluate", "evaluator", "figures", "limits", "resume", "scripts", "setup", "sweep"),
    *("video", "windows", "wrong_inputs"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the slow files."""
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker("slow")


def save_network(path: Path, game: str = "breakout", num_actions: int = 4, *, seed: int = 0) -> Path:
    """Save the state dict of an untrained network, always the same one; returns its path."""
    torch.manual_seed(seed)
    save_state_dict(QNetwork(game, num_actions).state_dict(), path)
    return path


def begun(parameters: Hyperparameters) -> Training:
    """A training on the CPU whose games have been started."""
    training = set_up(parameters, torch.device("cpu"))
    training.begin()
    return training


def finish(config: Config) -> Path:
    """Train to the end in a child process, with the fresh seeds of `soak.start`; returns the run's folder."""
    assert os.waitpid(start(config), 0)[1] == 0
    assert config.run_dir
    return config.run_dir


def run_script(
    name: str, *arguments: str, cwd: Path = ROOT, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a user does, with these environment variables changed."""
    command = [sys.executable, str(ROOT / name), *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=timeout)


def start_script(name: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a script of the project that is to be interrupted; what it prints comes at once."""
    return subprocess.Popen(
        [sys.executable, "-u", str(ROOT / name), *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """What `what` gives once it is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"it did not happen within {seconds:g} seconds"
        time.sleep(0.05)
    return found


def processes() -> Iterator[tuple[int, list[str]]]:
    """The processes that run at this moment, each with its arguments."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        yield int(process.name), arguments.split("\0")


def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], main: Callable[[], None], *arguments: str
) -> str:
    """The one line with which a script's `main`, given these arguments, ends with status 2; it printed nothing else."""
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it greets once per process
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    capfd.readouterr()  # what was printed before
    with pytest.raises(SystemExit) as end:
        exit_with(main)
    assert end.value.code == 2
    output = capfd.readouterr()
    (line,) = (output.out + output.err).splitlines()
    assert line.startswith("error: ")
    assert line in output.err
    return line


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, `TINY`, that is finished; tests that change it copy it."""
    return finish(replace(TINY, run_dir=tmp_path_factory.mktemp("finished") / "run"))
