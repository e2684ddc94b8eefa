"""The one line that a training shows while it runs: tqdm draws it, how long is left is worked out here."""

import datetime
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

WINDOW_SECONDS = 60.0  # speed and time left are those of the last minute
REFRESH_SECONDS = 1.0


class Mark(NamedTuple):
    """How far a run was at a time: seconds of the machine's clock, agent steps, games."""

    seconds: float
    steps: int
    games: int


class Progress:
    """How fast a training goes, how long is left, and the line that says so."""

    def __init__(self, steps_limit: int, games_limit: int):
        """The limits are where it ends, whichever comes first."""
        self._limits = Mark(0, steps_limit, games_limit)
        self._marks: deque[Mark] = deque()
        self._bar: tqdm[None] | None = None

    def start(self, steps: int, games: int) -> None:
        """Begin the line, at so many agent steps and games."""
        self._marks.append(Mark(time.monotonic(), steps, games))
        self._bar = tqdm(total=100, bar_format="{percentage:3.0f}% |{bar:10}| {postfix}")

    def show(self, steps: int, games: int, scores: Sequence[float], epsilon: float) -> None:
        """Refresh the line when it is older than `REFRESH_SECONDS`, and at the end."""
        mark = Mark(time.monotonic(), steps, games)
        at_the_end = steps >= self._limits.steps or games >= self._limits.games
        if mark.seconds - self._marks[-1].seconds < REFRESH_SECONDS and len(self._marks) > 1 and not at_the_end:
            return
        self._marks.append(mark)
        while mark.seconds - self._marks[0].seconds > WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        assert self._bar is not None, "start first"
        self._bar.n = round(100 * max(steps / self._limits.steps, games / self._limits.games))
        self._bar.set_postfix_str(
            f"game {games:,}, mean of last {len(scores)}: {np.mean(scores) if scores else float('nan'):.1f}, "
            f"epsilon {epsilon:.3f}, step {steps:,}, {self.steps_per_second(steps):,.0f} steps/s, "
            f"{self._time_left()} left"
        )

    def steps_per_second(self, steps: int) -> float:
        """Agent steps per second over the last minute, now that it is at `steps`."""
        first = self._marks[0]
        return (steps - first.steps) / max(time.monotonic() - first.seconds, 1e-9)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _time_left(self) -> str:
        first, last = self._marks[0], self._marks[-1]
        seconds = [
            (last.seconds - first.seconds) * (limit - reached) / (reached - before)
            for limit, reached, before in zip(self._limits[1:], last[1:], first[1:], strict=True)
            if reached > before
        ]
        return str(datetime.timedelta(seconds=round(min(seconds)))) if seconds else "?"
