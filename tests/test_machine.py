"""How scripts end, signals that are noted, and devices."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from runtime.devices import choose_device, pack, platform_fingerprint, threads_of, threads_wanted, unpack
from runtime.exits import UsageError, exit_with


def test_device_that_is_not_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("", "gpu", "meta", "cuda:99", "xpu"):
        with pytest.raises(UsageError, match="this machine has"):
            choose_device(name)


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("auto", 0)])
def test_a_cuda_device_is_set_by_its_index(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
    """With CUDA's calls stood in for: `torch.cuda.set_device` refuses a device that has no index."""
    chosen = []

    def set_device(device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got: {device}")
        chosen.append(device)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", set_device)
    assert choose_device(name) == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]
    with pytest.raises(UsageError, match="--device cuda:2 is not there; this machine has 2 CUDA"):
        choose_device("cuda:2")


def raised(error: Exception) -> Callable[[], object]:
    """A function that raises `error`."""

    def function() -> object:
        raise error

    return function


def void(_value: object) -> None:
    """For a lambda that returns nothing."""


SIGNALLED = """
import os, signal, sys, threading
from runtime.exits import StopSignal, exit_with
def send(times):
    for _ in range(times):
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
def main():
    with StopSignal() as stop:
        print(bool(stop), flush=True)
        send(int(sys.argv[2]))
        print(bool(stop), flush=True)
    send(int(sys.argv[3]))
if sys.argv[4:] == ["in a thread"]:
    thread = threading.Thread(target=main)
    exit_with(lambda: (thread.start(), thread.join()))
else:
    exit_with(main)
"""


@pytest.mark.parametrize(
    ("arguments", "output", "status"),
    [
        (("SIGINT", "1", "0"), ["False", "True"], 130),  # noted, and the block ends as it likes
        (("SIGTERM", "1", "0"), ["False", "True"], 143),
        (("SIGHUP", "1", "0"), ["False", "True"], 129),
        (("SIGINT", "2", "0"), ["False"], 130),  # a second one is for good
        (("SIGTERM", "2", "0"), ["False"], 143),
        (("SIGINT", "1", "1"), ["False", "True"], 130),  # behind the block, signals do what they did before it
        (("SIGTERM", "1", "1"), ["False", "True"], -signal.SIGTERM),
        (("SIGTERM", "1", "0", "in a thread"), ["False"], -signal.SIGTERM),  # where none can be noted
    ],
)
def test_a_signal_is_noted_and_the_next_one_ends_the_process(
    arguments: tuple[str, ...], output: list[str], status: int
) -> None:
    command = [sys.executable, "-c", SIGNALLED, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == output
    assert result.returncode == status
    at_once = status > 0 and (arguments[1], arguments[2]) != ("1", "0")
    assert result.stderr == ("\nStopped.\n" if at_once else "")


def test_what_the_process_was_started_to_ignore_stays_ignored() -> None:
    """As behind nohup: the run goes on when its terminal is closed."""
    command = [sys.executable, "-c", SIGNALLED, "SIGHUP", "2", "1"]
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **ignoring)  # type: ignore[call-overload]
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["False", "False"], "")


# Writes the lines to both, and then, as its very last act, a file: what became of it says whether the script went on.
PRINTING = """
import os, sys
from runtime.exits import exit_with
def main():
    for number in range(3):
        print("line", number)
        print("error line", number, file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        file.write(str(file.fileno()))
exit_with(main)
"""


@pytest.mark.parametrize(
    ("redirection", "status", "said", "went_on"),
    [
        ("| true", 141, "", False),
        ("2>&1 | true", 141, "", False),
        ("> /dev/full", 1, "error: [Errno 28] No space left on device", False),
        ("> /dev/full 2> /dev/full", 1, "", False),
        (">&- 2>&-", 0, "", True),
    ],
)
def test_output_that_nobody_reads_or_that_cannot_be_written_ends_a_script_in_a_line_at_most(
    tmp_path: Path, redirection: str, status: int, said: str, went_on: bool
) -> None:
    (tmp_path / "script.py").write_text(PRINTING)
    quiet = redirection if "2>" in redirection else f"2> {tmp_path}/errors {redirection}"
    line = f"{sys.executable} {tmp_path}/script.py {tmp_path}/end {quiet}; exit ${{PIPESTATUS[0]}}"
    command = ["bash", "-c", line.replace("| true", "| (exec <&-; sleep 0.3)")]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == status
    assert result.stdout + result.stderr == ""
    if (tmp_path / "errors").exists():
        errors = (tmp_path / "errors").read_text().splitlines()
        assert [line for line in errors if not line.startswith("error line")] == [said] * bool(said)
    assert (tmp_path / "end").exists() == went_on
    if went_on:  # and no file of the script was opened as standard output or error
        assert int((tmp_path / "end").read_text()) > 2


def test_messages_stand_in_a_redirected_output_at_once() -> None:
    program = "import os; from runtime.exits import exit_with; exit_with(lambda: (print('said'), os._exit(0)))"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, env=buffered, capture_output=True, text=True, timeout=60)
    assert result.stdout == "said\n"


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: torch.empty(10**15, dtype=torch.uint8), "DefaultCPUAllocator: can't allocate memory: you tried"),
        (lambda: np.empty(10**15, np.uint8), "Unable to allocate 909. TiB"),
        (lambda: bytearray(2**62), "out of memory: MemoryError;"),
        (
            raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
            "CUDA out of memory. Tried",
        ),
        (raised(OSError(errno.ENOMEM, "Cannot allocate memory")), "Cannot allocate memory"),  # of fork and mmap
    ],
)
def test_memory_that_runs_out_is_one_line_with_what_to_reduce(
    allocate: Callable[[], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        exit_with(lambda: void(allocate()), smaller="--replay-size")
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: ")
    assert said in line
    assert line.endswith("; choose a smaller --replay-size, or free some memory")


def test_another_error_of_torch_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        exit_with(lambda: void(torch.zeros(2, 3) @ torch.zeros(2, 3)))


def test_packed_arrays_come_out_as_they_went_in_each_where_its_type_may_begin() -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "flags": generator.random(5) < 0.5,
        "indices": generator.integers(2**40, size=(7, 3))[:, :2],  # not contiguous
        "number": np.array(0.25, np.float32),
        "frames": generator.integers(256, size=(3, 5, 7), dtype=np.uint8),
        "rewards": generator.random(9).astype(np.float32),
        "none": np.zeros(0, np.int64),
    }
    packed, places = pack(arrays, pin_memory=False)
    arrays_before = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array[...] = 0  # the bytes are packed: what becomes of the arrays is no matter
    unpacked = unpack(packed.clone(), places)
    assert [*unpacked] == [*arrays]
    for name, array in arrays_before.items():
        assert unpacked[name].dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(unpacked[name].numpy(), array)
    assert all(tensor.storage_offset() * tensor.itemsize % 8 == 0 for tensor in unpacked.values())


def test_threads_follow_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_wanted() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads_wanted() == 0
    assert threads_of(platform_fingerprint(torch.device("cpu"))) == torch.get_num_threads()
    assert threads_of([]) == threads_of(["cpu", 2, "2.13.0"]) == 0


# What is set when a script has torch loaded, which reads it then.
LOADING = """
import os, runpy, sys
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0)
sys.meta_path.insert(0, Look())
sys.path.insert(0, ".")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["q_agent_train.py", "benchmark.py"])
@pytest.mark.parametrize(
    ("typed", "expected"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_waiting_threads_let_others_work_from_before_torch_is_loaded(
    script: str, typed: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", *typed)} | typed
    command = [sys.executable, "-u", "-c", LOADING, script]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [expected], result.stderr
