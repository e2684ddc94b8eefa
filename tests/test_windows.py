"""What Windows lacks, hidden from this project's own modules; Windows itself has not been run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from conftest import ROOT, save_network
from soak import SMALL, flags

# A module of the project that imports one of these gets what Windows has of it, and what behaves otherwise there.
HIDING = """
import builtins, ctypes, errno, os, runpy, signal, sys, types
real = builtins.__import__
root, hidden = sys.argv[1], {
    "os": ("fork", "sync", "sched_getaffinity", "setsid", "setpgid", "killpg", "getuid", "geteuid", "uname", "statvfs",
           "waitpid", "WNOHANG", "mkfifo", "O_DIRECTORY", "O_NOFOLLOW", "getpgid", "pread"),
    "signal": ("SIGHUP", "SIGPIPE", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGXFSZ", "SIGUSR1", "pthread_sigmask"),
    "ctypes": (),
}

def as_on_windows(module):
    hiding = types.ModuleType(module.__name__)
    hiding.__dict__.update({k: v for k, v in vars(module).items() if k not in hidden[module.__name__]})
    return hiding

windows = {name: as_on_windows(module) for name, module in (("os", os), ("signal", signal), ("ctypes", ctypes))}
windows["os"].name = "nt"

def open_no_folder(path, *arguments, **named):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return os.open(path, *arguments, **named)

def sync_what_may_be_written(descriptor):
    import fcntl
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(descriptor)

def replace_no_folder(source, target):
    if os.path.isdir(target):
        raise PermissionError(errno.EACCES, "Access is denied", source)
    os.replace(source, target)

def load_no_program(name, *arguments, **named):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    return ctypes.CDLL(name, *arguments, **named)

windows["os"].open, windows["os"].replace = open_no_folder, replace_no_folder
windows["os"].fsync = sync_what_may_be_written
windows["ctypes"].CDLL = load_no_program

def import_as_on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    file = str((globals or {}).get("__file__") or "")
    folder = os.path.dirname(file).removeprefix(root).strip("/")
    if file.startswith(root) and folder in ("", "relatives", "runtime", "viewing"):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in windows:
            return windows[name]
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = import_as_on_windows
sys.path.insert(0, root)
sys.argv = sys.argv[2:]
if "q_agent_train" in sys.argv[0]:
    import runtime.run, q_agent_train
    runtime.run.BACKGROUND_ON = ("cpu",)  # as on a GPU: in a process of its own
    assert sys.modules["runtime.exits"].signal is windows["signal"]
    from runtime.exits import exit_with
    exit_with(q_agent_train.main)
else:
    runpy.run_path(os.path.join(root, sys.argv[0]), run_name="__main__")
"""


def run_as_on_windows(script: str, *arguments: str, cwd: Path) -> str:
    """What a script printed that ran well, in a process in which the project sees what Windows has."""
    command = [sys.executable, "-c", HIDING, str(ROOT), script, *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_training_a_resume_an_evaluation_and_a_film_need_nothing_that_windows_lacks(tmp_path: Path) -> None:
    arguments = flags(replace(SMALL, steps=400, evaluate_every=300, run_dir=Path("run")))
    trained = run_as_on_windows("q_agent_train.py", *arguments, cwd=tmp_path)
    assert "Finished after" in trained
    assert "Evaluation at agent step" in trained
    assert "playing it here instead" not in trained
    assert "Resuming at game" in run_as_on_windows("q_agent_train.py", *arguments, "--steps", "440", cwd=tmp_path)
    assert "road_runner" in run_as_on_windows(
        "evaluate.py", "--state-dict", "run/best.pt", "--games", "2", "--minutes", "0.2", "--csv", "x.csv", cwd=tmp_path
    )
    (tmp_path / "frames").mkdir()
    network = save_network(tmp_path / "breakout.pt")
    film = ("--state-dict", str(network), "--epsilon", "1", "--seed", "16", "--plain", "--frames", "frames")
    assert "breakout.mp4: " in run_as_on_windows("trained_model_video_generation.py", *film, cwd=tmp_path)
    assert len(os.listdir(tmp_path / "frames" / "game_001")) > 500
