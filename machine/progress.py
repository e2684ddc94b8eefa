"""The one line that a training shows while it runs: tqdm draws it, how long is left is worked out here."""

import datetime
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

WINDOW_SECONDS = 60.0  # speed and time left are those of the last minute
REFRESH_SECONDS = 1.0


class Progress:
    """How fast a training goes, how long is left, and the line that says so."""

    def __init__(self, steps: int, games: int, steps_limit: int, games_limit: int):
        """Begin the line, at so many agent steps and games; the limits are where it ends, whichever comes first."""
        self._limits = (steps_limit, games_limit)
        self._marks = deque([(time.monotonic(), steps, games)])
        self._bar = tqdm(total=100, bar_format="{percentage:3.0f}% |{bar:10}| {postfix}")

    def show(self, steps: int, games: int, scores: Sequence[float], epsilon: float) -> None:
        """Refresh the line when it is older than `REFRESH_SECONDS`, and at the end."""
        now, share = time.monotonic(), max(steps / self._limits[0], games / self._limits[1])
        if now - self._marks[-1][0] < REFRESH_SECONDS and len(self._marks) > 1 and share < 1:
            return
        self._marks.append((now, steps, games))
        while now - self._marks[0][0] > WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        self._bar.n = round(100 * share)
        self._bar.set_postfix_str(
            f"game {games:,}, mean of last {len(scores)}: {np.mean(scores) if scores else float('nan'):.1f}, "
            f"epsilon {epsilon:.3f}, step {steps:,}, {self.steps_per_second(steps):,.0f} steps/s, "
            f"{self._time_left()} left"
        )

    def steps_per_second(self, steps: int) -> float:
        """Agent steps per second over the last minute, now that it is at `steps`."""
        began, before, _ = self._marks[0]
        return (steps - before) / max(time.monotonic() - began, 1e-9)

    def close(self) -> None:
        self._bar.close()

    def _time_left(self) -> str:
        (began, *first), (now, *last) = self._marks[0], self._marks[-1]
        ways = [way for way in zip(self._limits, last, first, strict=True) if way[1] > way[2]]
        seconds = [(now - began) * (limit - reached) / (reached - before) for limit, reached, before in ways]
        return str(datetime.timedelta(seconds=round(min(seconds)))) if seconds else "?"
