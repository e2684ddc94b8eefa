"""What a training shows while it runs: tqdm draws the line and the bars, the time left is computed here."""

import datetime
import math
import sys
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from runtime.run_config import RunConfig

WINDOW_SECONDS = 60.0  # speed and time left are those of the last minute
REFRESH_SECONDS = 1.0
LINE_EVERY_SECONDS = 60.0  # where nobody watches: in a file each line stays, and a run may last a week
MOST_SECONDS = 10**9  # 31 years; beyond 10**13 timedelta overflows


def watched() -> bool:
    """Whether somebody watches standard error, in a terminal or a notebook: there a line is refreshed in place."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def bar_of_actions(agent_steps: int) -> tqdm:
    """The bar of an action log of so many agent steps that is played again; in a file a line a minute."""
    every = 0.1 if watched() else LINE_EVERY_SECONDS
    return tqdm(total=agent_steps, desc="Playing the action log", unit=" steps", unit_scale=True, mininterval=every)


class Progress:
    """How fast a training is, how long it will take, and the line that shows it."""

    def __init__(self, steps: int, games: int, config: RunConfig):
        """Begin the line, at so many agent steps and games; it ends at the limit of `config` that comes first."""
        self._limits = {"--steps": config.steps, "--games": config.games}
        self._learning_begins = config.replay_start_size
        self._evaluate_every = config.evaluate_every or math.inf
        self._evaluation_seconds = 0.0  # of the last one; those to come are taken to last as long
        self._marks = deque([(time.monotonic(), steps, games)])
        self._bar = tqdm(total=100, bar_format="{percentage:3.0f}% |{bar:10}| {desc}", disable=not watched())
        self._printed_at = -LINE_EVERY_SECONDS

    def show(self, steps: int, games: int, scores: Sequence[float], epsilon: float, note: str = "") -> None:
        """Refresh the line when it is older than `REFRESH_SECONDS`, and at the end; in a file, write one a minute."""
        now, reached = time.monotonic(), (steps, games)
        share = max(now_at / limit for now_at, limit in zip(reached, self._limits.values(), strict=True))
        if now - self._marks[-1][0] < REFRESH_SECONDS and len(self._marks) > 1 and share < 1:
            return
        if self._marks[-1][1] < self._learning_begins <= steps:
            self._marks.clear()  # from here on each step takes about 15 times as long
        self._marks.append((now, steps, games))
        while now - self._marks[0][0] > WINDOW_SECONDS and len(self._marks) > 2:
            self._marks.popleft()
        mean = f", mean of last {len(scores)}: {np.mean(scores):.1f}" if scores else ""
        self._bar.n = round(100 * share)
        line = f"game {games:,}{mean}, epsilon {epsilon:.3f}, step {steps:,}, {self._pace()}{note}"
        self._bar.set_description_str(line)
        if self._bar.disable and (now - self._printed_at >= LINE_EVERY_SECONDS or share >= 1):
            self._printed_at = now
            print(f"{self._bar.n:3}% {line}", file=sys.stderr)

    def evaluated(self, seconds: float) -> None:
        """An evaluation has taken so long: it counts for the time left, and not for the speed."""
        self._evaluation_seconds = seconds
        self._marks = deque((at + seconds, steps, games) for at, steps, games in self._marks)

    def steps_per_second(self, steps: int) -> float:
        """Agent steps per second over the last minute, now that it is at `steps`."""
        began, before, _ = self._marks[0]
        return (steps - before) / max(time.monotonic() - began, 1e-9)

    def close(self) -> None:
        self._bar.close()

    def _pace(self) -> str:
        """The speed, and how long to the limit that comes first; while actions are random, to the first update."""
        (began, *first), (now, *last) = self._marks[0], self._marks[-1]
        goals = {f"left to {name} {limit:,}": limit for name, limit in self._limits.items()}
        if last[0] < self._learning_begins:  # learning is slower than random actions
            goals = {"until learning begins": self._learning_begins}
        ways = zip(goals.items(), last, first, strict=False)
        times = [((now - began) * (goal - at) / (at - was), name) for (name, goal), at, was in ways if at > was]
        if not times:
            return "measuring its speed"
        seconds, goal = min(times)
        reached = last[0] + (last[0] - first[0]) / (now - began) * seconds
        seconds += (reached // self._evaluate_every - last[0] // self._evaluate_every) * self._evaluation_seconds
        left = datetime.timedelta(seconds=round(min(max(seconds, 0), MOST_SECONDS)))
        return f"{self.steps_per_second(last[0]):,.0f} steps/s, {left} {goal}"
