"""The action log: seeds and actions from which the replay memory is played again, so that no checkpoint holds it."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from replay_memory import ReplayMemory
from wrappers import AtariGames

FINGERPRINT_FRAMES = 1_000


class ActionLog:
    """The seeds and actions from which a stretch of play can be played again, byte for byte.

    A segment begins where the games were reset from a seed. Row numbers are the replay memory's.
    """

    def __init__(self, num_envs: int):
        self._num_envs = num_envs
        self._seeds: list[int] = []
        self._rows: list[int] = []
        self._actions: list[bytearray] = []  # one byte each

    def start_segment(self, seed: int, row: int) -> None:
        """The games have just been reset from `seed`; their first frames are row `row`."""
        self._seeds.append(seed)
        self._rows.append(row)
        self._actions.append(bytearray())

    def record(self, actions: np.ndarray) -> None:
        """Keep the actions (num_envs,) of one agent step."""
        self._actions[-1].extend(actions.astype(np.uint8).tobytes())

    def forget_before(self, row: int) -> None:
        """Drop the segments that end before `row`: nothing in the memory comes from them."""
        while len(self._rows) > 1 and self._rows[1] <= row:
            del self._seeds[0], self._rows[0], self._actions[0]

    def segments(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Seed, first row and actions (steps, num_envs) uint8 of each segment, oldest first."""
        actions = (np.frombuffer(bytes(each), np.uint8).reshape(-1, self._num_envs) for each in self._actions)
        return zip(self._seeds, self._rows, actions, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """The segments: seeds, first rows, and actions as flat uint8 arrays."""
        actions = [np.array(each, np.uint8) for each in self._actions]
        return {"seeds": [*self._seeds], "rows": [*self._rows], "actions": actions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._seeds, self._rows = [*state["seeds"]], [*state["rows"]]
        self._actions = [bytearray(actions.tobytes()) for actions in state["actions"]]


def play_again(
    log: ActionLog, games: AtariGames, memory: ReplayMemory, watch: Callable[[int], bool] = lambda steps: True
) -> bool:
    """Fill an empty memory with what the log's actions lead to; False as soon as `watch` returns False.

    After each step `watch` is told how many agent steps it was.
    """
    for number, (seed, row, segment) in enumerate(log.segments()):
        if number == 0:
            memory.start(row, games.reset(seed))
        else:
            memory.restart_games(games.reset(seed))
        for actions in segment:
            games.send(actions)
            memory.append(actions, games.receive())
            if not watch(len(actions)):
                return False
    return True


def fingerprint(memory: ReplayMemory) -> str:
    """SHA-256 of the newest rows, at most about 1,000 frames: the same bytes, the same play."""
    count = min(memory.row - memory.oldest_row, max(FINGERPRINT_FRAMES // memory.num_envs, 1))
    ring_rows = np.arange(memory.row - count, memory.row + 1) % memory.num_rows
    slots = (ring_rows[:, None] * memory.num_envs + np.arange(memory.num_envs)).flatten()
    frames = memory.frames[torch.from_numpy(slots).to(memory.frames.device)]
    digest = hashlib.sha256(frames.cpu().numpy().tobytes())
    digest.update(memory.ages[ring_rows].tobytes())
    for column in (memory.actions, memory.rewards, memory.terminals):
        digest.update(column[ring_rows[:-1]].tobytes())
    return digest.hexdigest()
