"""How the scripts end: one clear line on standard error, an exit status for the shell, signals that are noted first."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, ClassVar, Self

SIGPIPE = 13  # by which others end where nobody reads their output; Windows has no such signal
ALLOCATORS = ("DefaultCPUAllocator: ", "out of memory")  # of PyTorch: the CPU's; the others' words


class UsageError(Exception):
    """What the user asked for cannot be done: the message names the cause and the way out; exit status 2."""


class RunError(Exception):
    """Something failed while running: the message names the cause and what is safe; exit status 1."""


class StopSignal:
    """Notes Ctrl-C, SIGTERM and a closed terminal while its block runs, so that a long work ends at a good place.

    True once one came. A second one raises KeyboardInterrupt there and then, unless `patient`. A SIGHUP that is
    ignored from the start (nohup) stays so. Python notes signals in the main thread alone. On Windows a closed
    terminal is SIGBREAK.
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

    0; 2 for a `UsageError`; 1 for a `RunError`, a file that cannot be read or written, and memory that ran out; each is
    one line. 128 + its number after a signal; 141, quietly, where nobody reads standard output or error any more.
    smaller: the flags that make the script need less memory.
    """
    StopSignal.came = None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the start
            setattr(sys, name, open(os.devnull, "w"))
    stdout: Any = sys.stdout  # a file's name may be no text; and in a file or a pipe a message is to stand at once
    stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    status, line = 0, ""
    try:
        main()
    except KeyboardInterrupt as error:  # in a hook its traceback would keep emulators alive, which ale-py reports
        status = 128 + (StopSignal.came or signal.SIGINT)
        line = f"\n{' '.join(['Stopped', *map(str, error.args)])}."
    except BrokenPipeError:
        status = 128 + SIGPIPE
    except Exception as error:
        status, line = 2 if isinstance(error, UsageError) else 1, f"error: {' '.join(str(error).splitlines())}"
        if is_out_of_memory(error):
            way_out = f"choose a smaller {smaller}, or free some memory" if smaller else "free some memory"
            line = f"error: out of memory: {line[7:] or type(error).__name__}; {way_out}"
        elif not isinstance(error, (UsageError, RunError, OSError)):
            raise
    if line:
        with suppress(OSError):  # there is nobody to tell
            print(line, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # what it still holds goes nowhere; Python's own flush at the end would fail, too, and say so
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = status or 1
    if status or StopSignal.came:
        sys.exit(status or 128 + int(StopSignal.came or 0))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine's memory or a GPU's ran out: Python, NumPy and PyTorch say it by different exceptions."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATORS)
    return isinstance(error, MemoryError) or said or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
