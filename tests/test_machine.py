"""How scripts end, signals that are noted, and devices."""

import errno
import signal
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import ROOT

from runtime.devices import choose_device, pack, unpack
from runtime.exits import UsageError, exit_with


def test_a_device_that_the_machine_lacks_is_refused_with_those_that_it_has() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("", "gpu", "meta", "cuda:x"):
        with pytest.raises(UsageError, match=f'^this machine has no device "{name}"; choose --device .*cpu'):
            choose_device(name)


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:1", 1), ("auto", 0)])
def test_a_cuda_device_is_set_by_its_index(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
    """With CUDA's calls stood in for: `torch.cuda.set_device` refuses a device that has no index."""
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: chosen.append(device.index))
    assert choose_device(name) == torch.device("cuda", index)
    assert chosen == [index]
    with pytest.raises(UsageError, match='no device "cuda:2"; choose --device cuda or cpu'):
        choose_device("cuda:2")


def raised(error: Exception) -> Callable[[], object]:
    """A function that raises `error`."""

    def function() -> object:
        raise error

    return function


def void(_value: object) -> None:
    """For a lambda that returns nothing."""


SIGNALLED = """
import os, signal, sys
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
if sys.argv[4:] == ["nohup"]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
exit_with(main)
"""


@pytest.mark.parametrize(
    ("arguments", "output", "status"),
    [
        (("SIGINT", "1", "0"), ["False", "True"], 130),  # noted, and the block ends as it likes
        (("SIGHUP", "1", "0"), ["False", "True"], 129),
        (("SIGTERM", "2", "0"), ["False"], 143),  # a second one ends the process
        (("SIGTERM", "1", "1"), ["False", "True"], -signal.SIGTERM),  # after the block it does what it did before
        (("SIGHUP", "2", "1", "nohup"), ["False", "False"], 0),  # what is ignored from the start stays ignored
    ],
)
def test_a_signal_is_noted_and_the_next_one_ends_the_process(
    arguments: tuple[str, ...], output: list[str], status: int
) -> None:
    command = [sys.executable, "-c", SIGNALLED, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == output
    assert result.returncode == status
    assert result.stderr == ("\nStopped.\n" if status == 143 else "")


@pytest.mark.parametrize(
    ("redirection", "status", "errors"),
    [
        ("| (exec <&-; sleep 0.3)", 141, []),
        ("> /dev/full", 1, ["error: [Errno 28] No space left on device"]),
        (">&-", 0, []),
    ],
)
def test_output_that_nobody_reads_ends_a_script_quietly_and_one_that_is_full_in_a_line(
    redirection: str, status: int, errors: list[str]
) -> None:
    program = "import time; from runtime.exits import exit_with; exit_with(lambda: (time.sleep(0.2), print('line')))"
    line = f'{sys.executable} -c "{program}" {redirection}; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr.splitlines()[:1]) == (status, errors)


@pytest.mark.parametrize(
    ("allocate", "message"),
    [
        (lambda: torch.empty(10**15, dtype=torch.uint8), "DefaultCPUAllocator: can't allocate memory: you tried"),
        (lambda: np.empty(10**15, np.uint8), "Unable to allocate 909. TiB"),
        (
            raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
            "CUDA out of memory. Tried",
        ),
        (raised(OSError(errno.ENOMEM, "Cannot allocate memory")), "Cannot allocate memory"),  # of fork and mmap
    ],
)
def test_memory_that_runs_out_is_one_line_with_what_to_reduce(
    allocate: Callable[[], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        exit_with(lambda: void(allocate()), smaller="--replay-size")
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: ")
    assert message in line
    assert line.endswith("; choose a smaller --replay-size, or free some memory")


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
    packed, layout = pack(arrays, pin_memory=False)
    arrays_before = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array[...] = 0  # the packed bytes are a copy
    unpacked = unpack(packed.clone(), layout)
    assert [*unpacked] == [*arrays]
    for name, array in arrays_before.items():
        assert unpacked[name].dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(unpacked[name].numpy(), array)
    assert all(tensor.storage_offset() * tensor.itemsize % 8 == 0 for tensor in unpacked.values())
