"""What is learned: the paper's constants, one step of the training loop, and the state to go on from bit for bit."""

import math
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from errors import UsageError
from model import FRAME_SIZE, HISTORY_FRAMES, QNetwork
from q_agent import QAgent
from replay_memory import ReplayMemory
from wrappers import MAX_EMULATOR_SEED, AtariGames, FinishedGame, Step, Tape

MAX_ENVS = 256  # each plays 976 agent steps between two fresh seeds: most games come to their end
RESEED_STEPS = 250_000  # agent steps between fresh seeds for the emulators: the places where a tape can start
HELD_OUT_STATES = 500  # run_gpu: valid_size
EVALUATION_SEEDS = 1  # names a stream of seeds that training itself never draws from


@dataclass
class Hyperparameters:
    """Everything that decides what is learned; the defaults are the paper's."""

    game: str
    """The game, by any of its names: BreakoutNoFrameskip-v4, ALE/Breakout-v5, Breakout, breakout."""
    seed: int = 0
    """Seed of the weights, the exploration, the sampling and the emulators."""
    num_envs: int = 32
    """Games played side by side. The paper plays 1; the ratio of updates to agent steps is the same for any number."""
    replay_size: int = 1_000_000
    """Transitions in the replay memory, a multiple of num-envs (run_gpu: replay_memory)."""
    replay_start_size: int = 50_000
    """Agent steps of random play before learning starts (run_gpu: learn_start)."""
    minibatch_size: int = 32
    """Transitions per update (run_gpu: minibatch_size)."""
    update_frequency: int = 4
    """Agent steps per update (run_gpu: update_freq)."""
    target_update_frequency: int = 10_000
    """Agent steps, not updates, between copies to the target network (run_gpu: target_q; NeuralQLearner perceive)."""
    learning_rate: float = 0.00025
    """Constant step size of RMSProp (run_gpu: lr)."""
    rmsprop_decay: float = 0.95
    """Decay of both running means of the gradient (NeuralQLearner.lua: qLearnMinibatch)."""
    rmsprop_minimum: float = 0.01
    """Added to the gradient's variance inside the root (NeuralQLearner.lua: qLearnMinibatch)."""
    discount: float = 0.99
    """Discount factor per agent step (run_gpu: discount)."""
    epsilon_start: float = 1.0
    """Probability of a random action until learning starts (run_gpu: ep)."""
    epsilon_end: float = 0.1
    """Probability of a random action after the decay (run_gpu: ep_end)."""
    epsilon_decay_steps: int = 1_000_000
    """Agent steps of linear decay, from replay-start-size on (run_gpu: ep_endt = replay_memory)."""
    sticky_actions: float = 0.0
    """Probability that the emulator repeats the last action instead; 0 in the paper, 0.25 in later work."""
    evaluate_every: int = 250_000
    """Agent steps between evaluations by the paper's protocol, 0 for never (run_gpu: eval_freq)."""
    evaluation_games: int = 30
    """Games per evaluation (paper, Methods: Evaluation procedure)."""
    deterministic: bool = False
    """On a GPU, use only kernels that always give the same bits, at some cost. A CPU always does."""

    def epsilon(self, agent_steps: np.ndarray) -> np.ndarray:
        """Probability of a random action at each agent step (count,) int64; float64 (NeuralQLearner.lua, eGreedy)."""
        learning_steps = np.maximum(0, agent_steps - self.replay_start_size)
        remaining = np.maximum(0, self.epsilon_decay_steps - learning_steps) / self.epsilon_decay_steps
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * remaining

    def updates_until(self, agent_steps: int) -> int:
        """Updates made in the first `agent_steps`: one at each multiple of the period after the warm-up."""
        first = self.replay_start_size // self.update_frequency
        return max(0, agent_steps // self.update_frequency - first)

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot be."""
        counts = ("minibatch_size", "update_frequency", "target_update_frequency", "epsilon_decay_steps")
        for name in counts:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("num_envs", "evaluation_games"):
            _require(1 <= getattr(self, name) <= MAX_ENVS, name, getattr(self, name), f"from 1 to {MAX_ENVS}")
        probabilities = ("epsilon_start", "epsilon_end", "sticky_actions", "discount")
        for name in probabilities:
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        for name in ("learning_rate", "rmsprop_minimum"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "a finite number above 0")
        _require(0 <= self.rmsprop_decay < 1, "rmsprop_decay", self.rmsprop_decay, "from 0 to below 1")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        _require(
            self.replay_start_size >= self.num_envs,
            "replay_start_size",
            self.replay_start_size,
            f"at least one step of each environment, {self.num_envs}",
        )
        _require(self.evaluate_every >= 0, "evaluate_every", self.evaluate_every, "0 for never, or more")


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise UsageError(f"--{name.replace('_', '-')} {value} cannot be: it must be {allowed}")


def multiples_crossed(before: int, after: int, period: int) -> int:
    """How many multiples of `period` lie in (before, after]: several environments step at once."""
    return after // period - before // period


class Training:
    """A training run without its files: the games, the memory, the agent, the clock.

    A function of the hyperparameters alone: nothing here reads a clock or depends on what was logged or saved.
    """

    def __init__(self, parameters: Hyperparameters, device: torch.device):
        self.parameters = parameters
        self.games = AtariGames(parameters.game, parameters.num_envs, sticky_actions=parameters.sticky_actions)
        self.memory = ReplayMemory(parameters.replay_size, parameters.num_envs, device)
        torch.manual_seed(parameters.seed)
        self.agent = QAgent(
            QNetwork(self.games.rom, self.games.num_actions),
            self.memory,
            learning_rate=parameters.learning_rate,
            rmsprop_decay=parameters.rmsprop_decay,
            rmsprop_minimum=parameters.rmsprop_minimum,
            discount=parameters.discount,
            minibatch_size=parameters.minibatch_size,
        )
        self._generators = dict(
            zip(
                ("exploration", "sampling", "emulators"),
                (np.random.default_rng(s) for s in np.random.SeedSequence(parameters.seed).spawn(3)),
                strict=True,
            )
        )
        self.tape = Tape(parameters.num_envs)
        self.agent_steps = 0
        self.games_finished = 0
        self.recent_scores: deque[float] = deque(maxlen=100)
        self.held_out_states: np.ndarray | None = None
        self.evaluations = 0  # evaluations done: they draw from seeds of their own
        self._reseeds = 0

    def begin(self) -> None:
        """Start a new run: every game from its first seed."""
        self.memory.start(0, self._seeded_games())

    def step(self) -> list[FinishedGame]:
        """One agent step of every environment, and the updates due in it; returns the games that ended."""
        before = self.agent_steps
        after = before + self.parameters.num_envs
        if self.held_out_states is None and before >= self.parameters.replay_start_size:
            self.held_out_states = self._draw_held_out_states()
        actions = self.agent.act(self.parameters.epsilon(np.arange(before, after)), self._generators["exploration"])
        self.games.send(actions)  # the emulators run in their own threads ...
        updates = self.parameters.updates_until(after) - self.parameters.updates_until(before)
        if updates:  # ... while the network learns from what lies before this step
            count = updates * self.parameters.minibatch_size
            self.agent.learn(self.memory.sample(count, self._generators["sampling"]))
        step = self.games.receive()
        self._remember(actions, step)
        self.tape.record(actions)
        self.tape.forget_before(self.memory.oldest_row)
        self.agent_steps = after
        self.games_finished += len(step.finished)
        self.recent_scores.extend(game.score for game in step.finished)
        if multiples_crossed(before, after, self.parameters.target_update_frequency):
            self.agent.copy_target()
        return step.finished

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the time has come for an evaluation, after which the caller adds one to `evaluations`."""
        period = self.parameters.evaluate_every
        return period > 0 and self.evaluations < self.agent_steps // period

    def reseed_when_due(self) -> None:
        """Every `RESEED_STEPS`, break off the games and start new ones from a fresh seed.

        The released code starts anew at each evaluation, as often. Uninterrupted runs do it too.
        """
        if self._reseeds < self.agent_steps // RESEED_STEPS:
            self._reseeds += 1
            self.memory.restart_games(self._seeded_games())

    def evaluation_seed(self) -> int:
        """A seed for the evaluation due now, a function of the run's seed and the agent step alone."""
        sequence = np.random.SeedSequence((self.parameters.seed, EVALUATION_SEEDS, self.evaluations))
        return int(sequence.generate_state(1)[0]) % MAX_EMULATOR_SEED

    def mean_max_q(self) -> float | None:
        """The average action value over the held-out states; None before learning starts."""
        return None if self.held_out_states is None else self.agent.mean_max_q(self.held_out_states)

    def _draw_held_out_states(self) -> np.ndarray:
        drawn = self.memory.sample(HELD_OUT_STATES, self._generators["sampling"])
        indices = torch.from_numpy(drawn.frame_indices[:, :HISTORY_FRAMES]).to(self.memory.device)
        return np.asarray(self.memory.gather(indices).cpu().numpy())

    def _seeded_games(self) -> np.ndarray:
        seed = int(self._generators["emulators"].integers(MAX_EMULATOR_SEED))
        self.tape.start_segment(seed, self.memory.row)
        return self.games.reset(seed)

    def _remember(self, actions: np.ndarray, step: Step) -> None:
        # The frames' rewards are summed by the emulator, then clipped (perceive); scores stay raw.
        rewards = np.clip(step.rewards, -1, 1)
        self.memory.append(actions, rewards, step.terminals, step.game_starts, step.frames)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain values; the memory as a tape."""
        held_out = None
        if self.held_out_states is not None:  # 14 MB, and nearly all background
            held_out = torch.frombuffer(bytearray(zlib.compress(self.held_out_states.tobytes(), 1)), dtype=torch.uint8)
        tape = self.tape.state_dict()
        return {
            "agent": self.agent.state_dict(),
            "generators": {name: generator.bit_generator.state for name, generator in self._generators.items()},
            "tape": tape | {"actions": [torch.from_numpy(actions) for actions in tape["actions"]]},
            "fingerprint": self.memory.fingerprint(),
            "agent_steps": self.agent_steps,
            "games_finished": self.games_finished,
            "recent_scores": list(self.recent_scores),
            "held_out_states": held_out,
            "evaluations": self.evaluations,
            "reseeds": self._reseeds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Iterator[int]:
        """Take over what `state_dict` gave, and play the tape: yields the agent steps played, as it goes.

        Call `tape_played_true` when it is done.
        """
        self.agent.load_state_dict(state["agent"])
        for name, generator in self._generators.items():
            generator.bit_generator.state = state["generators"][name]
        tape = state["tape"]
        self.tape.load_state_dict(tape | {"actions": [actions.numpy() for actions in tape["actions"]]})
        self.agent_steps = state["agent_steps"]
        self.games_finished = state["games_finished"]
        self.recent_scores.extend(state["recent_scores"])
        if state["held_out_states"] is not None:
            pixels = np.frombuffer(zlib.decompress(state["held_out_states"].numpy().tobytes()), np.uint8)
            self.held_out_states = pixels.reshape(-1, HISTORY_FRAMES, FRAME_SIZE, FRAME_SIZE).copy()
        self.evaluations = state["evaluations"]
        self._reseeds = state["reseeds"]
        self._expected_fingerprint = state["fingerprint"]
        for number, (seed, row, segment) in enumerate(self.tape.segments()):
            frames = self.games.reset(seed)
            if number == 0:
                self.memory.start(row, frames)
            else:
                self.memory.restart_games(frames)
            for actions in segment:
                self.games.send(actions)
                self._remember(actions, self.games.receive())
                yield self.parameters.num_envs

    def tape_played_true(self) -> bool:
        """Whether the memory's newest frames are those that the checkpoint was written with."""
        return self.memory.fingerprint() == self._expected_fingerprint

    def close(self) -> None:
        """Stop the emulators."""
        self.games.close()
