"""How the scripts end: one clear line on standard error, an exit status for the shell, signals that are noted first."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, Self

ALLOCATORS = ("DefaultCPUAllocator: ", "out of memory")  # how PyTorch's errors name the CPU's memory, and a GPU's


class UsageError(Exception):
    """What the user asked for is wrong: the message names the value and what to do; exit status 2."""


class RunError(Exception):
    """Something failed while running: the message names the cause and what is safe; exit status 1."""


class StopSignal:
    """Notes Ctrl-C, SIGTERM and a closed terminal while its block runs, so that a long task ends at a good moment.

    True once one came. A second one raises KeyboardInterrupt at once, unless `patient`. A SIGHUP that is ignored from
    the start (nohup) stays ignored. Python handles signals in the main thread alone. On Windows a closed terminal is
    SIGBREAK.
    """

    came: ClassVar[int | None] = None
    """The signal that came last in this process: `exit_with` ends with 128 + its number, as shells report it."""
    NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # not every system has all

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self._noted = False

    def __bool__(self) -> bool:
        return self._noted

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in [getattr(signal, name) for name in self.NAMES if hasattr(signal, name)]:
                if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        StopSignal.came = number
        if self._noted and not self._patient:
            raise KeyboardInterrupt
        self._noted = True

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def exit_with(main: Callable[[], None], *, smaller: str = "") -> None:
    """Run a script's `main` and end the process, with a status that says how it went.

    0; 2 for a `UsageError`; 1 for a `RunError`, a read or a write that failed, and memory that ran out; each is
    one line. 128 + its number after a signal; 141, quietly, where nobody reads standard output any more.
    smaller: the flags that make the script need less memory.
    """
    StopSignal.came = None
    status = 0
    stdout: Any = sys.stdout
    if stdout:  # a path may not be valid text; and in a file or a pipe each message appears at once
        stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except KeyboardInterrupt as error:  # in a hook its traceback would keep emulators alive, which ale-py reports
        status = 128 + (StopSignal.came or signal.SIGINT)
        print(f"\n{' '.join(['Stopped', *map(str, error.args)])}.", file=sys.stderr)
    except BrokenPipeError:
        status = 128 + 13  # SIGPIPE, which Windows lacks
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # Python flushes it once more as it ends
    except Exception as error:
        if not (isinstance(error, UsageError | RunError | OSError) or is_out_of_memory(error)):
            raise
        status = 2 if isinstance(error, UsageError) else 1
        line = " ".join(str(error).splitlines())
        if is_out_of_memory(error):
            way_out = f"choose a smaller {smaller}, or free some memory" if smaller else "free some memory"
            line = f"out of memory: {line or type(error).__name__}; {way_out}"
        print(f"error: {line}", file=sys.stderr)
    if status or StopSignal.came:
        sys.exit(status or 128 + int(StopSignal.came or 0))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine's memory or a GPU's ran out: Python, NumPy and PyTorch raise different exceptions for it."""
    of_torch = isinstance(error, RuntimeError) and any(name in str(error) for name in ALLOCATORS)
    return isinstance(error, MemoryError) or of_torch or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
