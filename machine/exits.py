"""How the scripts end: one clear line on standard error, an exit status for the shell, signals that are noted first."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self, TextIO


class UsageError(Exception):
    """What the user asked for cannot be done: the message names the cause and the way out; exit status 2."""


class RunError(Exception):
    """Something failed while running: the message names the cause and what is safe; exit status 1."""


class StopSignal:
    """Notes Ctrl-C, SIGTERM and a closed terminal while its block runs, so that a long work ends at a good place.

    True once one came. A second one raises KeyboardInterrupt there and then, unless `patient`. A SIGHUP that is
    ignored from the start (nohup) stays so. Python notes signals in the main thread alone.
    """

    came: ClassVar[int | None] = None
    """The signal that came last in this process: `exit_with` ends with 128 + its number, as shells report it."""
    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self._noted = False

    def __bool__(self) -> bool:
        return self._noted

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in self.NUMBERS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
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


class _OutputClosedError(Exception):
    """Whoever read standard output or error has gone."""


class _Output:
    """Standard output or error, which may break at any time: at a closed pipe, a closed terminal, a full disk."""

    def __init__(self, stream: TextIO | None, *, needed: bool):
        self._stream: Any = stream or open(os.devnull, "w")  # None: it was closed before the start
        self._needed = needed
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")  # a file's name may be no text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._broken_is_told():
            self._stream.write(text)
            if "\n" in text:  # in a file or a pipe, too, a message stands there at once
                self._stream.flush()
        return len(text)

    def flush(self) -> None:
        with self._broken_is_told():
            self._stream.flush()

    @contextmanager
    def _broken_is_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError):  # what the stream still holds, and Python's own flush at the end, go nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._needed:
                if isinstance(error, BrokenPipeError):
                    raise _OutputClosedError from None
                raise RunError(f"standard output cannot be written: {error.strerror}") from None


@contextmanager
def _outputs(*, needed: bool) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Output(stream, needed=needed) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def exit_with(main: Callable[[], None], *, needs_output: bool = True) -> None:
    """Run a script's `main` and end the process, with a status that says how it went.

    0; 2 for a `UsageError`, 1 for a `RunError`, each one line; 128 + its number after a signal; 141, quietly, where
    standard output or error is a pipe that nobody reads any more. A script that does not need them goes on.
    """
    StopSignal.came = None
    with _outputs(needed=needs_output):
        status = _status_of(main)
    if status or StopSignal.came:
        sys.exit(status or 128 + int(StopSignal.came or 0))


def _status_of(main: Callable[[], None]) -> int:
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as error:  # in a hook its traceback would keep emulators alive, which ale-py reports
        return _stopped(error)
    except (UsageError, RunError) as error:
        _say(f"error: {' '.join(str(error).splitlines())}")
        return 2 if isinstance(error, UsageError) else 1
    except _OutputClosedError:
        return 128 + signal.SIGPIPE
    return 0


def _stopped(error: BaseException) -> int:
    _say(f"\n{' '.join(['Stopped', *map(str, error.args)])}.")
    return 128 + (StopSignal.came or signal.SIGINT)


def _say(line: str) -> None:
    with suppress(_OutputClosedError, RunError):  # there is nobody to tell
        print(line, file=sys.stderr)


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    sys.exit(_stopped(error))


# Set by the import, which scripts do before all others. Ctrl-C is one line while they still load torch; and no file of
# a run is opened as descriptor 1 or 2 because that was closed, and then written by whatever prints there.
sys.excepthook = _report
for _descriptor in range(3):
    try:
        os.fstat(_descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
