"""How the scripts fail: one clear line on standard error, and an exit status that a shell can act on."""

import sys
from collections.abc import Callable


class UsageError(Exception):
    """What the user asked for cannot be done: the message names the cause and the way out; exit status 2."""


class RunError(Exception):
    """Something failed while running: the message names the cause and what is safe; exit status 1."""


def exit_with(main: Callable[[], None]) -> None:
    """Run a script's `main` and end the process: status 0, 2 for a `UsageError`, 1 for a `RunError`, 130 for Ctrl-C."""
    try:
        main()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
