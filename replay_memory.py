"""The replay memory: every frame once, stacked into states when they are sampled."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atari import FRAME_SIZE, HISTORY_FRAMES, Step
from machine.devices import available_bytes, upload
from machine.exits import UsageError

BYTES_PER_TRANSITION = FRAME_SIZE * FRAME_SIZE + 1 + 4 + 1 + 1  # frame, action, reward, terminal, age
FINGERPRINT_FRAMES = 1_000
LEAST_PRIORITY = 2e-6  # GamePlay's
CANDIDATES, LEAST_CANDIDATES = 8, 1_024  # drawn at once for each transition that is wanted by priority, and at least

STATE = np.arange(-(HISTORY_FRAMES - 1), 1)  # where a state's frames lie, counted from its newest


@dataclass
class Transitions:
    """Sampled transitions, ready to be learned from; (count, ...) arrays.

    On the memory's device: windows (count, 5, 84, 84) uint8, the frames of states and next states, up to 8 where there
    are several steps between them; actions (count,) int64; rewards (count,) float32, a discounted sum of clipped ones;
    discounts (count,) float32, of the next state's value, 0 behind a terminal.
    On the host: places (count,) int64, where they lie in the ring; chances (count,) float32, how likely each was drawn
    beside one of the largest priority, None where all are alike.
    """

    windows: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    places: np.ndarray
    chances: np.ndarray | None = None

    @property
    def states(self) -> Tensor:
        """(count, 4, 84, 84) uint8, oldest frame first."""
        return self.windows[:, :HISTORY_FRAMES]

    @property
    def next_states(self) -> Tensor:
        """(count, 4, 84, 84) uint8; behind a terminal they mean nothing."""
        return self.windows[:, -HISTORY_FRAMES:]


class ReplayMemory:
    """A ring of rows, one row per vector step and one column per environment.

    Row t of environment e holds the frame o_t, and once the step is done the action, the clipped reward and whether
    it was terminal. `age` counts how many frames of the same game lie before it, up to 3: what is older is zeros.
    Frames live on `device` (for MPS on the host, see `frames_device`), everything else on the host.
    TransitionTable.lua is the paper's; docs/differences.md says where this one differs.
    """

    def __init__(
        self,
        size: int,
        num_envs: int,
        device: torch.device | str = "cpu",
        *,
        discount: float = 0.99,
        n_steps: int = 1,
        priority_exponent: float | None = None,
    ):
        """Allocate `size` transitions; raises `UsageError` for a size that cannot be sampled from or does not fit.

        A transition spans `n_steps` agent steps (Sutton 1988), each of which discounts what follows. With a
        `priority_exponent` it is drawn in proportion to its priority to that power.
        """
        check_size(size, num_envs, torch.device(device), n_steps)
        self.discount = discount
        self.n_steps = n_steps
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
        self.priority_exponent = priority_exponent
        # How likely each is drawn beside one of the largest priority, 1: its priority to that power.
        self.chances = None if priority_exponent is None else np.ones(shape, np.float32)
        self._environments = np.arange(num_envs)
        self.first_row = 0  # the first row ever written
        self.row = 0  # the newest row: its frame is known, its action not yet

    @property
    def oldest_row(self) -> int:
        """The oldest row whose frames are still there."""
        return max(self.first_row, self.row - self.num_rows + 1)

    def start(self, row: int, frames: np.ndarray) -> None:
        """Begin an empty memory at `row` (0, or where a tape starts) with games' first frames."""
        self.first_row = self.row = row
        self.restart_games(frames)

    def restart_games(self, frames: np.ndarray) -> None:
        """Put the first frames (num_envs, 84, 84) uint8 of new games in place of the newest row's.

        The games before them break off: their last transitions have lost their successors and are never sampled.
        """
        self._write_row(frames, np.zeros(self.num_envs, np.uint8))

    def append(self, actions: np.ndarray, step: Step) -> None:
        """Complete the newest row with the actions (num_envs,) and what came of them, and begin the next.

        The frames' rewards were summed by the emulator; they are clipped here (perceive), scores stay raw.
        """
        ring_row = self.row % self.num_rows
        self._actions[ring_row] = actions
        self._rewards[ring_row] = np.clip(step.rewards, -1, 1)
        self._terminals[ring_row] = step.terminals
        ages = np.where(step.game_starts, 0, np.minimum(self._ages[ring_row] + 1, HISTORY_FRAMES - 1))
        self.row += 1
        self._write_row(step.frames, ages.astype(np.uint8))

    def _write_row(self, frames: np.ndarray, ages: np.ndarray) -> None:
        ring_row = self.row % self.num_rows
        begin = ring_row * self.num_envs
        self.frames[begin : begin + self.num_envs] = upload(self.frames.device, frames=frames)["frames"]
        self._ages[ring_row] = ages
        # What stood here before is forgotten, so that the memory's bytes are a function of the rows it holds.
        self._actions[ring_row] = self._rewards[ring_row] = self._terminals[ring_row] = 0
        if self.chances is not None:
            self.chances[ring_row] = 1  # the largest: what is new is soon learned from

    def latest_states(self) -> Tensor:
        """The states (num_envs, 4, 84, 84) uint8, on the memory's device, in which the agent is to act now."""
        rows = np.full(self.num_envs, self.row)
        indices = self._frame_indices(rows, self._environments, STATE)
        return self._gather(upload(self.frames.device, indices=indices)["indices"])

    def sample(self, count: int, generator: np.random.Generator) -> Transitions:
        """Draw `count` transitions with replacement, uniformly or by priority, from all that are whole; some step was
        appended."""
        rows, environments = (self.draw if self.chances is None else self._draw_by_priority)(count, generator)
        places = self._places(rows, environments)
        rewards, discounts = self.returns(rows, environments)
        there = upload(  # in one transfer
            self.frames.device,
            indices=self.frame_indices(rows, environments),
            actions=self._actions.flat[places].astype(np.int64),
            rewards=rewards,
            discounts=discounts,
        )
        return Transitions(
            self._gather(there.pop("indices")),
            **{name: values.to(self.device) for name, values in there.items()},
            places=places,
            chances=None if self.chances is None else self.chances.flat[places],
        )

    def set_priorities(self, drawn: Transitions, td_errors: np.ndarray | None) -> None:
        """Give transitions the priority min(|TD error| + 2e-6, 1), as GamePlay does; nothing where all are alike.

        td_errors: (count,) float32. Of a transition that was drawn twice the later error counts.
        """
        if self.chances is not None and td_errors is not None:
            priorities = np.minimum(np.abs(td_errors) + LEAST_PRIORITY, 1)
            self.chances.flat[drawn.places] = priorities**self.priority_exponent

    def _places(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        return rows % self.num_rows * self.num_envs + environments

    def _draw_by_priority(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        assert self.chances is not None, "only with priorities"
        # No priority exceeds 1, so a uniform draw that is kept with probability p ** exponent is exact, without a tree.
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        missing = count
        while missing > 0:
            candidates = max(CANDIDATES * missing, LEAST_CANDIDATES)
            rows, environments = self.draw(candidates, generator)
            keep = generator.random(candidates) < self.chances.flat[self._places(rows, environments)]
            kept.append((rows[keep], environments[keep]))
            missing -= int(keep.sum())
        rows, environments = map(np.concatenate, zip(*kept, strict=True))
        return rows[:count], environments[:count]

    def draw(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows and environments, (count,) int64 each, of transitions drawn uniformly from all that are whole."""
        rows, environments, broken = np.zeros(count, np.int64), np.zeros(count, np.int64), np.arange(count)
        while broken.size:
            rows[broken] = generator.integers(self.oldest_row, self.row, size=broken.size)
            environments[broken] = generator.integers(self.num_envs, size=broken.size)
            (broken,) = np.nonzero(~self._is_whole(rows, environments))
        return rows, environments

    def _is_whole(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Whether the history has not been overwritten, and the steps run to a terminal, or all without a cut."""
        history_is_there = rows - self._ages[rows % self.num_rows, environments] >= self.oldest_row
        going, ended = np.ones(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        for row in (rows + k for k in range(self.n_steps)):
            going &= row < self.row  # what is newer has not been played yet
            terminal = self._terminals[row % self.num_rows, environments]
            ended |= going & terminal
            going &= ~terminal & (self._ages[(row + 1) % self.num_rows, environments] > 0)
        return history_is_there & (going | ended)

    def returns(self, rows: np.ndarray, environments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of whole transitions, (count,) float32 each: the discounted sum of the rewards, up to a terminal; and the
        discount of the value behind them, 0 where a terminal came."""
        rewards, discounts = np.zeros(len(rows)), np.ones(len(rows))
        for places in (self._places(rows + k, environments) for k in range(self.n_steps)):
            rewards += discounts * self._rewards.flat[places]
            discounts *= self.discount * ~self._terminals.flat[places]
        return rewards.astype(np.float32), discounts.astype(np.float32)

    def frame_indices(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Where the frames of states and next states lie, (count, 5) int64, up to 8 for more steps than one: three
        before, the row's own, those after; the slot of zeros for what another game, or nobody yet, has played."""
        offsets = np.unique([STATE, STATE + self.n_steps])
        indices = self._frame_indices(rows, environments, offsets)
        going = np.ones(len(rows), np.bool_)
        for k in range(1, self.n_steps + 1):
            going &= (self._ages[(rows + k) % self.num_rows, environments] > 0) & (rows + k <= self.row)
            indices[~going[:, None] & (offsets == k)] = self._zero_slot
        return indices

    def _frame_indices(self, rows: np.ndarray, environments: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        indices = (rows[:, None] + offsets) % self.num_rows * self.num_envs + environments[:, None]
        ages = self._ages[rows % self.num_rows, environments]
        return np.where(ages[:, None] < -offsets, self._zero_slot, indices)

    def _gather(self, frame_indices: Tensor) -> Tensor:
        frames = self.frames.index_select(0, frame_indices.flatten())
        return frames.view(*frame_indices.shape, FRAME_SIZE, FRAME_SIZE).to(self.device)

    def fingerprint(self) -> str:
        """SHA-256 of the newest rows, at most about 1,000 frames: the same bytes, the same play."""
        count = min(self.row - self.oldest_row, max(FINGERPRINT_FRAMES // self.num_envs, 1))
        ring_rows = np.arange(self.row - count, self.row + 1) % self.num_rows
        slots = (ring_rows[:, None] * self.num_envs + self._environments).flatten()
        digest = hashlib.sha256(self._gather(torch.from_numpy(slots).to(self.frames.device)).cpu().numpy().tobytes())
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


def minimum_rows(n_steps: int) -> int:
    """Rows per environment from which something can always be drawn, wherever the last cut lies.

    On its newer side N + 1 rows are needed, on its older one a state's history besides.
    """
    return HISTORY_FRAMES + 2 + 2 * n_steps


def check_size(size: int, num_envs: int, device: torch.device, n_steps: int = 1) -> float:
    """The gigabytes of the device's memory that stay free beside a replay memory of this size.

    Raises `UsageError` for a size that cannot be divided, sampled from, or held there.
    """
    smallest, gigabytes = minimum_rows(n_steps) * num_envs, size * BYTES_PER_TRANSITION / 1e9
    asked = f"--replay-size {size:,}"
    if size % num_envs:
        nearest = max(round(size / num_envs) * num_envs, smallest)
        raise UsageError(f"{asked} is not a multiple of --num-envs {num_envs}; the nearest that is: {nearest:,}")
    if size < smallest:
        who = f"--num-envs {num_envs}" + (f" with --n-steps {n_steps}" if n_steps > 1 else "")
        raise UsageError(f"{asked} is too small to sample from: {who} needs at least {smallest:,}")
    free = available_bytes(device)
    if gigabytes > free / 1e9:
        fits = free // BYTES_PER_TRANSITION // num_envs * num_envs
        way_out = f"at most --replay-size {fits} fits" if fits >= smallest else "not even the smallest fits"
        raise UsageError(f"{asked} needs {gigabytes:.1f} GB, and {device} has {free / 1e9:.1f} GB free; {way_out}")
    return free / 1e9 - gigabytes
