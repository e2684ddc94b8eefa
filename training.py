"""The state of a training: its clock (what is due when), its random streams, what it counts."""

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from atari import MAX_EMULATOR_SEED, Step
from config import Hyperparameters
from q_agent import QAgent
from replay_memory import ReplayMemory
from runtime.action_log import ActionLog
from wrappers import AtariGames

RESEED_STEPS = 250_000  # agent steps between fresh seeds for the emulators: there an action log can start
HELD_OUT_STATES = 500  # run_gpu: valid_size
EVALUATION_SEEDS, HEAD_SEEDS = 1, 2  # name streams of seeds that training itself never draws from


def multiples_crossed(before: int, after: int, period: int) -> int:
    """How many multiples of `period` lie in (before, after], as several environments step at once; 0 for period 0."""
    return after // period - before // period if period else 0


class Training:
    """The games, the memory, the agent, the clock, the action log; `q_agent_train.step` moves it.

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
        self.action_log = ActionLog(parameters.num_envs)
        self.games_finished = 0
        self.recent_scores: deque[float] = deque(maxlen=100)
        self.held_out_states: torch.Tensor | None = None
        self.evaluations = 0  # evaluations done: they draw from seeds of their own
        self.reseeds = 0
        # For relatives/; the paper needs none of these.
        self.schedules: list[Callable[[int], None]] = []  # told the agent steps before each vector step
        self.events: list[Callable[[int, int], None]] = []  # told the agent steps before and after each vector step
        self.kept_arrays: dict[str, np.ndarray] = {}  # what a checkpoint must hold, since no log of actions tells it
        # What `set_clock` works out for the next vector step.
        self.agent_steps = 0
        self.epsilon: np.ndarray  # of each environment
        self.updates_due: int
        self.target_copy_is_due: bool

    def begin(self) -> None:
        """Start a new run: every game from its first seed."""
        self.set_clock(0)
        self.memory.start(0, self._seeded_games())

    def set_clock(self, agent_steps: int) -> None:
        """Be at `agent_steps`: what the next step of all environments needs is worked out here, once."""
        parameters, after = self.parameters, agent_steps + self.parameters.num_envs
        self.agent_steps = agent_steps
        self.epsilon = parameters.epsilon(np.arange(agent_steps, after))
        self.updates_due = parameters.updates_until(after) - parameters.updates_until(agent_steps)
        self.target_copy_is_due = multiples_crossed(agent_steps, after, parameters.target_update_frequency) > 0
        for schedule in self.schedules:
            schedule(agent_steps)

    def advance(self, actions: np.ndarray, step: Step) -> None:
        """Move the clock past a step whose transitions are in the memory, and keep its actions in the log."""
        after = self.agent_steps + self.parameters.num_envs
        for event in self.events:
            event(self.agent_steps, after)
        self.action_log.record(actions)
        self.action_log.forget_before(self.memory.oldest_row)
        self.set_clock(after)
        self.games_finished += len(step.finished)
        self.recent_scores.extend(game.score for game in step.finished)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the time has come for an evaluation, after which the caller adds one to `evaluations`."""
        return self.evaluations < self.parameters.evaluations_until(self.agent_steps)

    def evaluation_seed(self) -> int:
        """A seed for the evaluation due now, a function of the run's seed and the number of evaluations alone."""
        return self.seed(EVALUATION_SEEDS, self.evaluations) % MAX_EMULATOR_SEED

    def seed(self, stream: int, number: int) -> int:
        """The seed of this number in a stream, a function of the run's seed alone."""
        return int(np.random.SeedSequence((self.parameters.seed, stream, number)).generate_state(1)[0])

    def reseed_when_due(self) -> None:
        """Every `RESEED_STEPS`, start new games from a fresh seed, as the released code does to evaluate."""
        if self.reseeds < self.agent_steps // RESEED_STEPS:
            self.reseeds += 1
            self.memory.restart_games(self._seeded_games())

    def _seeded_games(self) -> np.ndarray:
        seed = int(self.generators["emulators"].integers(MAX_EMULATOR_SEED))
        self.action_log.start_segment(seed, self.memory.row)
        return self.games.reset(seed)

    def hold_out_states_when_due(self) -> None:
        """Once `replay_start_size` is reached, draw the states over which the average action value is followed."""
        if self.held_out_states is None and self.agent_steps >= self.parameters.replay_start_size:
            drawn = self.memory.sample(HELD_OUT_STATES, self.generators["sampling"])
            self.held_out_states = drawn.states.cpu().clone()  # not a view of the whole batch's frames

    def mean_max_q(self) -> float | None:
        """The paper's average action value: the mean over the held-out states of max Q; None until they are drawn."""
        return None if self.held_out_states is None else self.agent.max_q(self.held_out_states).mean().item()

    def close(self) -> None:
        self.games.close()
