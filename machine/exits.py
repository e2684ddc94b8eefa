"""How the scripts end: one clear line on standard error, an exit status for the shell, signals that are noted first."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self


class UsageError(Exception):
    """What the user asked for cannot be done: the message names the cause and the way out; exit status 2."""


class RunError(Exception):
    """Something failed while running: the message names the cause and what is safe; exit status 1."""


class StopSignal:
    """Notes Ctrl-C and SIGTERM while its block runs, so that a long work ends at a good place; true once one came.

    A second one ends the process at once, unless `patient`. Python notes signals in the main thread alone.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self._number: int | None = None

    def __bool__(self) -> bool:
        return self._number is not None

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._number = number
        if not self._patient:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def exit_with(main: Callable[[], None]) -> None:
    """Run a script's `main` and end the process: status 0, 2 for a `UsageError`, 1 for a `RunError`, 130 for Ctrl-C."""
    try:
        main()
    except KeyboardInterrupt as error:  # in a hook its traceback would keep emulators alive, which ale-py reports
        _stop(error)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _stop(error: BaseException) -> NoReturn:
    print(f"\n{' '.join(['Stopped', *map(str, error.args)])}.", file=sys.stderr)
    sys.exit(130)  # as shells report Ctrl-C


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _stop(error) if issubclass(kind, KeyboardInterrupt) else sys.__excepthook__(kind, error, trace)


# Set by the import, which scripts do before all others: Ctrl-C is one line while they still load torch.
sys.excepthook = _report
