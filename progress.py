"""The one line that a training shows while it runs."""

import datetime
import time
from collections import deque

import numpy as np
from tqdm import tqdm

from training import Training

WINDOW_SECONDS = 60.0  # speed and time left are those of the last minute
REFRESH_SECONDS = 1.0


class Pace:
    """How fast a training goes, how long is left, and the line that says so."""

    def __init__(self, training: Training, steps: int, games: int):
        """`steps` and `games` are where the run ends, whichever comes first."""
        self._training = training
        self._steps = steps
        self._games = games
        self._marks = deque([self._mark()])

    @property
    def steps_per_second(self) -> float:
        """Agent steps per second over the last minute."""
        (began, steps, _), (now, steps_now, _) = self._marks[0], self._mark()
        return (steps_now - steps) / max(now - began, 1e-9)

    def show(self, bar: "tqdm[None]", epsilon: float, at_once: bool = False) -> None:
        """Refresh the line when it is older than `REFRESH_SECONDS`, or at once."""
        now, steps, games = mark = self._mark()
        if now - self._marks[-1][0] < REFRESH_SECONDS and len(self._marks) > 1 and not at_once:
            return
        self._marks.append(mark)
        while now - self._marks[0][0] > WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        scores = self._training.recent_scores
        bar.n = round(100 * max(steps / self._steps, games / self._games))
        bar.set_postfix_str(
            f"game {games:,}, mean of last {len(scores)}: {np.mean(scores) if scores else float('nan'):.1f}, "
            f"epsilon {epsilon:.3f}, step {steps:,}, {self.steps_per_second:,.0f} steps/s, {self._time_left()} left"
        )

    def _time_left(self) -> str:
        (began, steps, games), (now, steps_now, games_now) = self._marks[0], self._marks[-1]
        seconds = [
            (now - began) * (limit - reached) / (reached - before)
            for limit, reached, before in ((self._steps, steps_now, steps), (self._games, games_now, games))
            if reached > before
        ]
        return str(datetime.timedelta(seconds=round(min(seconds)))) if seconds else "?"

    def _mark(self) -> tuple[float, int, int]:
        return time.monotonic(), self._training.agent_steps, self._training.games_finished
