"""What is learned: the paper's constants and schedules, and the state of a training, to go on from bit for bit."""

import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from atari import FRAME_SIZE, HISTORY_FRAMES, MAX_EMULATOR_SEED, Step
from config import Hyperparameters
from q_agent import QAgent
from replay_memory import ReplayMemory
from wrappers import AtariGames, Tape

RESEED_STEPS = 250_000  # agent steps between fresh seeds for the emulators: the places where a tape can start
HELD_OUT_STATES = 500  # run_gpu: valid_size
EVALUATION_SEEDS, HEAD_SEEDS = 1, 2  # name streams of seeds that training itself never draws from


def multiples_crossed(before: int, after: int, period: int) -> int:
    """How many multiples of `period` lie in (before, after]: several environments step at once. None of 0, never."""
    return after // period - before // period if period else 0


class Training:
    """The state of a training: the games, the memory, the agent, the clock, the tape; `q_agent_train.step` moves it.

    A function of the hyperparameters alone: nothing here reads a clock or depends on what was logged or saved.
    """

    def __init__(self, parameters: Hyperparameters, games: AtariGames, memory: ReplayMemory, agent: QAgent):
        self.parameters = parameters
        self.games = games
        self.memory = memory
        self.agent = agent
        streams = zip(
            ("exploration", "sampling", "emulators"), np.random.SeedSequence(parameters.seed).spawn(3), strict=True
        )
        self.generators = {name: np.random.default_rng(seed) for name, seed in streams}
        self.tape = Tape(parameters.num_envs)
        self.games_finished = 0
        self.recent_scores: deque[float] = deque(maxlen=100)
        self.held_out_states: torch.Tensor | None = None
        self.evaluations = 0  # evaluations done: they draw from seeds of their own
        self._reseeds = 0
        self._set_clock(0)

    def begin(self) -> None:
        """Start a new run: every game from its first seed."""
        self.memory.start(0, self._seeded_games())

    def _set_clock(self, agent_steps: int) -> None:
        """Be at `agent_steps`: what the next step of all environments needs is worked out here, once."""
        parameters, after = self.parameters, agent_steps + self.parameters.num_envs
        self.agent_steps = agent_steps
        self.epsilon = parameters.epsilon(np.arange(agent_steps, after))
        self.updates_due = parameters.updates_until(after) - parameters.updates_until(agent_steps)
        self.target_copy_is_due = multiples_crossed(agent_steps, after, parameters.target_update_frequency) > 0
        self.head_reset_is_due = multiples_crossed(agent_steps, after, parameters.reset_head_every) > 0
        self.memory.n_steps = parameters.n_steps_at(agent_steps)
        self.learning_rate = parameters.learning_rate_at(agent_steps)
        self.importance_exponent = parameters.importance_exponent_at(agent_steps)

    def advance(self, actions: np.ndarray, step: Step) -> None:
        """Move the clock behind a step whose transitions are in the memory, and keep its actions on the tape."""
        self.tape.record(actions)
        self.tape.forget_before(self.memory.oldest_row)
        self._set_clock(self.agent_steps + self.parameters.num_envs)
        self.games_finished += len(step.finished)
        self.recent_scores.extend(game.score for game in step.finished)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the time has come for an evaluation, after which the caller adds one to `evaluations`."""
        return self.evaluations < self.parameters.evaluations_until(self.agent_steps)

    def evaluation_seed(self) -> int:
        """A seed for the evaluation due now, a function of the run's seed and the agent step alone."""
        return self._seed(EVALUATION_SEEDS, self.evaluations) % MAX_EMULATOR_SEED

    def head_seed(self) -> int:
        """A seed for the head reset due now, a function of the run's seed and the agent step alone."""
        return self._seed(HEAD_SEEDS, self.agent_steps)

    def _seed(self, stream: int, number: int) -> int:
        return int(np.random.SeedSequence((self.parameters.seed, stream, number)).generate_state(1)[0])

    def reseed_when_due(self) -> None:
        """Every `RESEED_STEPS`, start new games from a fresh seed, as the released code does to evaluate."""
        if self._reseeds < self.agent_steps // RESEED_STEPS:
            self._reseeds += 1
            self.memory.restart_games(self._seeded_games())

    def _seeded_games(self) -> np.ndarray:
        seed = int(self.generators["emulators"].integers(MAX_EMULATOR_SEED))
        self.tape.start_segment(seed, self.memory.row)
        return self.games.reset(seed)

    def hold_out_states_when_due(self) -> None:
        """Behind `replay_start_size`, once, draw the states over which the average action value is followed."""
        if self.held_out_states is None and self.agent_steps >= self.parameters.replay_start_size:
            drawn = self.memory.sample(HELD_OUT_STATES, self.generators["sampling"])
            self.held_out_states = drawn.states.cpu()

    def mean_max_q(self) -> float | None:
        """The paper's average action value: the mean over the held-out states of max Q; None until they are drawn."""
        return None if self.held_out_states is None else self.agent.max_q(self.held_out_states).mean().item()

    def take_log_values(self) -> dict[str, float]:
        """A row of the log: loss and Q-values of the updates since the last call; max Q over the held-out states.

        A deviation near 0 is a network that does not tell states apart. It leaves out states with the empty frames of
        a game's start: these differ so much from all others that they hide it (docs/plateau.md).
        """
        values, states = self.agent.take_means(), self.held_out_states
        if states is None:
            return values
        max_q, whole = self.agent.max_q(states).cpu(), states.flatten(2).bool().any(2).all(1)
        deviation = max_q[whole].std(correction=0).item()
        return values | {"mean_q_held_out": max_q.mean().item(), "deviation_q_held_out": deviation}

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain values; the memory as a tape."""
        held_out = None if self.held_out_states is None else _packed(self.held_out_states.numpy())
        priorities = {} if self.memory.chances is None else {"priorities": _packed(self.memory.chances)}
        tape = self.tape.state_dict()
        return priorities | {
            "agent": self.agent.state_dict(),
            "generators": {name: generator.bit_generator.state for name, generator in self.generators.items()},
            "tape": tape | {"actions": [torch.from_numpy(actions) for actions in tape["actions"]]},
            "fingerprint": self.memory.fingerprint(),
            "agent_steps": self.agent_steps,
            "games_finished": self.games_finished,
            "recent_scores": list(self.recent_scores),
            "held_out_states": held_out,
            "evaluations": self.evaluations,
            "reseeds": self._reseeds,
        }

    def restore(self, state: dict[str, Any], watch: Callable[[int], bool] = lambda steps: True) -> bool | None:
        """Take over what `state_dict` gave, the memory by playing the tape; returns whether it gave the same bytes.

        After each step `watch` is told how many agent steps it was; when it says False, None is returned at once, and
        the training is to be thrown away.
        """
        if not self._play_tape(state["tape"], watch):
            return None
        self.agent.load_state_dict(state["agent"])
        for name, generator in self.generators.items():
            generator.bit_generator.state = state["generators"][name]
        self._set_clock(state["agent_steps"])
        self.games_finished = state["games_finished"]
        self.recent_scores.extend(state["recent_scores"])
        if state["held_out_states"] is not None:
            pixels = _unpacked(state["held_out_states"], np.uint8)
            self.held_out_states = torch.from_numpy(pixels.reshape(-1, HISTORY_FRAMES, FRAME_SIZE, FRAME_SIZE))
        if self.memory.chances is not None:
            self.memory.chances[:] = _unpacked(state["priorities"], np.float32).reshape(self.memory.chances.shape)
        self.evaluations = state["evaluations"]
        self._reseeds = state["reseeds"]
        return bool(self.memory.fingerprint() == state["fingerprint"])

    def _play_tape(self, tape: dict[str, Any], watch: Callable[[int], bool]) -> bool:
        self.tape.load_state_dict(tape | {"actions": [actions.numpy() for actions in tape["actions"]]})
        for number, (seed, row, segment) in enumerate(self.tape.segments()):
            if number == 0:
                self.memory.start(row, self.games.reset(seed))
            else:
                self.memory.restart_games(self.games.reset(seed))
            for actions in segment:
                self.games.send(actions)
                self.memory.append(actions, self.games.receive())
                if not watch(len(actions)):
                    return False
        return True

    def close(self) -> None:
        self.games.close()


def _packed(array: np.ndarray) -> torch.Tensor:
    """An array's bytes, compressed: the held-out states are 14 MB, and nearly all background."""
    return torch.frombuffer(bytearray(zlib.compress(array.tobytes(), 1)), dtype=torch.uint8)


def _unpacked(packed: torch.Tensor, dtype: type[np.generic]) -> np.ndarray:
    return np.frombuffer(bytearray(zlib.decompress(packed.numpy().tobytes())), dtype)
