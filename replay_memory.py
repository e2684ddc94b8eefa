"""The replay memory: every frame once, stacked into states when they are sampled."""

import gc
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from errors import UsageError
from model import FRAME_SIZE, HISTORY_FRAMES

FRAME_BYTES = FRAME_SIZE * FRAME_SIZE
BYTES_PER_TRANSITION = FRAME_BYTES + 1 + 4 + 1 + 1  # frame, action, reward, terminal, age
MINIMUM_ROWS = HISTORY_FRAMES + 4  # per environment: a state's history, its successor, and a few to choose from
FINGERPRINT_FRAMES = 1_000
RESERVE_BYTES = 10**9  # for the networks, their work space and the libraries

# A sampled transition is a window of frames: the four of the state and the one after it.
WINDOW = np.arange(-(HISTORY_FRAMES - 1), 2)


@dataclass
class Transitions:
    """Sampled transitions, as indices into the memory's frames; (count, ...) arrays on the host.

    frame_indices: (count, 5) int64; columns 0 to 3 are the state's frames, 1 to 4 the next state's.
    actions: (count,) int64. rewards: (count,) float32. terminals: (count,) bool, True: do not bootstrap.
    """

    frame_indices: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray


class ReplayMemory:
    """A ring of rows, one row per vector step and one column per environment.

    Row t of environment e holds the frame o_t, and once the step is done the action, the clipped reward and whether
    it was terminal. `age` counts how many frames of the same game lie before it, up to 3: what is older is zeros.
    Frames live on `device` (for MPS on the host, see `frames_device`), everything else on the host.
    TransitionTable.lua is the paper's; see the README for where this one differs.
    """

    def __init__(self, size: int, num_envs: int, device: torch.device | str = "cpu"):
        """Allocate `size` transitions; raises `UsageError` for a size that cannot be sampled from or does not fit."""
        check_size(size, num_envs, torch.device(device))
        self.num_envs = num_envs
        self.num_rows = size // num_envs
        self.device = torch.device(device)
        slots = size + 1  # one more for the frame of zeros
        self._zero_slot = size
        if frames_device(self.device).type == "cpu":
            # NumPy's zeros take memory only as it is written, PyTorch's at once.
            self.frames = torch.from_numpy(np.zeros((slots, FRAME_SIZE, FRAME_SIZE), np.uint8))
        else:
            self.frames = torch.zeros((slots, FRAME_SIZE, FRAME_SIZE), dtype=torch.uint8, device=self.device)
        shape = (self.num_rows, num_envs)
        self._actions = np.zeros(shape, np.uint8)
        self._rewards = np.zeros(shape, np.float32)
        self._terminals = np.zeros(shape, np.bool_)
        self._ages = np.zeros(shape, np.uint8)
        self._environments = np.arange(num_envs)
        self.first_row = 0  # the first row ever written
        self.row = 0  # the newest row: its frame is known, its action not yet

    @property
    def oldest_row(self) -> int:
        """The oldest row whose frames are still there."""
        return max(self.first_row, self.row - self.num_rows + 1)

    def start(self, row: int, frames: np.ndarray) -> None:
        """Begin an empty memory at `row` (0, or where a tape starts) with the games' first frames."""
        self.first_row = self.row = row
        self.restart_games(frames)

    def restart_games(self, frames: np.ndarray) -> None:
        """Put the first frames (num_envs, 84, 84) uint8 of new games in place of the newest row's.

        The games before them break off: their last transitions have lost their successors and are never sampled.
        """
        self._write_row(frames, np.zeros(self.num_envs, np.uint8))

    def append(
        self,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminals: np.ndarray,
        game_starts: np.ndarray,
        next_frames: np.ndarray,
    ) -> None:
        """Complete the newest row with what was done and came of it, and begin the next with `next_frames`.

        actions (num_envs,) integer; rewards (num_envs,) clipped; terminals (num_envs,) bool: a life or the game was
        lost; game_starts (num_envs,) bool: the next frame is a new game's first; next_frames (num_envs, 84, 84) uint8.
        """
        ring_row = self.row % self.num_rows
        self._actions[ring_row] = actions
        self._rewards[ring_row] = rewards
        self._terminals[ring_row] = terminals
        ages = np.where(game_starts, 0, np.minimum(self._ages[ring_row] + 1, HISTORY_FRAMES - 1))
        self.row += 1
        self._write_row(next_frames, ages.astype(np.uint8))

    def _write_row(self, frames: np.ndarray, ages: np.ndarray) -> None:
        ring_row = self.row % self.num_rows
        begin = ring_row * self.num_envs
        self.frames[begin : begin + self.num_envs].copy_(torch.from_numpy(frames))
        self._ages[ring_row] = ages
        # What stood here before is forgotten, so that the memory's bytes are a function of the rows it holds.
        self._actions[ring_row] = self._rewards[ring_row] = self._terminals[ring_row] = 0

    def latest_indices(self) -> np.ndarray:
        """Frame indices, (num_envs, 4) int64, of the states in which the agent is to act now."""
        rows = np.full(self.num_envs, self.row)
        return self._window(rows, self._environments)[:, :HISTORY_FRAMES]

    def gather(self, frame_indices: Tensor) -> Tensor:
        """The frames (*shape, 84, 84) uint8 at the indices, int64, of any shape, both on the memory's device."""
        frames = self.frames.index_select(0, frame_indices.flatten().to(self.frames.device))
        return frames.view(*frame_indices.shape, FRAME_SIZE, FRAME_SIZE).to(self.device)

    def sample(self, count: int, generator: np.random.Generator) -> Transitions:
        """Draw `count` transitions, uniformly with replacement, from all that are whole.

        At least one step must have been appended.
        """
        rows = generator.integers(self.oldest_row, self.row, size=count)
        environments = generator.integers(self.num_envs, size=count)
        while True:
            (broken,) = np.nonzero(~self._is_whole(rows, environments))
            if not broken.size:
                break
            rows[broken] = generator.integers(self.oldest_row, self.row, size=broken.size)
            environments[broken] = generator.integers(self.num_envs, size=broken.size)
        ring_rows = rows % self.num_rows
        return Transitions(
            frame_indices=self._window(rows, environments),
            actions=self._actions[ring_rows, environments].astype(np.int64),
            rewards=self._rewards[ring_rows, environments],
            terminals=self._terminals[ring_rows, environments],
        )

    def _is_whole(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Whether the history has not been overwritten, and the successor, where one is needed, is the same game's."""
        history_is_there = rows - self._ages[rows % self.num_rows, environments] >= self.oldest_row
        next_starts_game = self._ages[(rows + 1) % self.num_rows, environments] == 0
        return history_is_there & (~next_starts_game | self._terminals[rows % self.num_rows, environments])

    def _window(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Frame indices (count, 5): three before, the row's own, and the one after; zeros where the game has none."""
        indices = (rows[:, None] + WINDOW) % self.num_rows * self.num_envs + environments[:, None]
        ages = self._ages[rows % self.num_rows, environments]
        next_starts_game = self._ages[(rows + 1) % self.num_rows, environments] == 0
        outside = ages[:, None] < -WINDOW
        outside[:, -1] = next_starts_game
        return np.where(outside, self._zero_slot, indices)

    def fingerprint(self) -> str:
        """SHA-256 of the newest rows, at most about 1,000 frames: the same bytes, the same play."""
        count = min(self.row - self.oldest_row, max(FINGERPRINT_FRAMES // self.num_envs, 1))
        ring_rows = np.arange(self.row - count, self.row + 1) % self.num_rows
        slots = (ring_rows[:, None] * self.num_envs + self._environments).flatten()
        digest = hashlib.sha256(self.gather(torch.from_numpy(slots).to(self.device)).cpu().numpy().tobytes())
        digest.update(self._ages[ring_rows].tobytes())
        for column in (self._actions, self._rewards, self._terminals):
            digest.update(column[ring_rows[:-1]].tobytes())
        return digest.hexdigest()


def frames_device(device: torch.device) -> torch.device:
    """Where the frames of a memory for `device` live.

    On MPS index_select reads zeros beyond 2**31 elements, 304,000 frames, without a word (pytorch#188756, mended in
    2.14): there the host, whose memory an Apple GPU shares, keeps and gathers them.
    """
    return torch.device("cpu") if device.type == "mps" else device


def check_size(size: int, num_envs: int, device: torch.device) -> None:
    """Raise `UsageError` for a size that cannot be divided, sampled from, or held in the device's memory."""
    if size % num_envs:
        raise UsageError(
            f"--replay-size {size:,} is not a multiple of --num-envs {num_envs}; the nearest that is: "
            f"{max(round(size / num_envs), MINIMUM_ROWS) * num_envs:,}"
        )
    if size < MINIMUM_ROWS * num_envs:
        raise UsageError(
            f"--replay-size {size:,} is too small to sample from: with --num-envs {num_envs} at least "
            f"{MINIMUM_ROWS * num_envs:,} transitions are needed"
        )
    available = _available_bytes(device)
    if size * BYTES_PER_TRANSITION > available:
        fits = available // BYTES_PER_TRANSITION // num_envs * num_envs
        way_out = (
            f"at most --replay-size {fits} fits" if fits >= MINIMUM_ROWS * num_envs else "not even the smallest fits"
        )
        raise UsageError(
            f"--replay-size {size:,} needs {size * BYTES_PER_TRANSITION / 1e9:.1f} GB, and {device} has "
            f"{available / 1e9:.1f} GB free for it; {way_out}"
        )


def _available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        gc.collect()  # a memory of an earlier run in this process may still be waiting for it
        torch.cuda.empty_cache()
        return max(int(torch.cuda.mem_get_info(device)[0]) - RESERVE_BYTES, 0)
    gc.collect()
    available = int(psutil.virtual_memory().available)
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's own limit, where there is one
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        statistics = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
        available = min(available, int(text) - int(statistics["anon"]))
    return max(available - RESERVE_BYTES, 0)
