"""What is learned: the paper's constants and schedules, and the state of a training, to go on from bit for bit."""

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from atari import FRAME_SIZE, HISTORY_FRAMES, MAX_EMULATOR_SEED, Step
from machine.exits import UsageError
from machine.flags import MOST, Bounds, Count, Positive, Probability, check_bounds
from q_agent import QAgent
from replay_memory import ReplayMemory, check_size
from wrappers import AtariGames, Tape, rom_name

MAX_ENVS = 256  # each plays 976 agent steps between two fresh seeds: most games come to their end
RESEED_STEPS = 250_000  # agent steps between fresh seeds for the emulators: the places where a tape can start
HELD_OUT_STATES = 500  # run_gpu: valid_size
# Of each transition: its window of bytes and the target network's layers; the online network's, twice.
BYTES_DRAWN, BYTES_LEARNING = 200_000, 400_000
EVALUATION_SEEDS = 1  # names a stream of seeds that training itself never draws from


@dataclass
class Hyperparameters:
    """Everything that decides what is learned; the defaults are the paper's."""

    game: str
    """The game, by any of its names: BreakoutNoFrameskip-v4, ALE/Breakout-v5, Breakout, breakout."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of the weights, the exploration, the sampling and the emulators."""
    num_envs: Annotated[int, Bounds(1, MAX_ENVS)] = 32
    """Games played side by side. The paper plays 1; the ratio of updates to agent steps is the same for any number."""
    replay_size: int = 1_000_000
    """Transitions in the replay memory, a multiple of num-envs (run_gpu: replay_memory)."""
    replay_start_size: int = 50_000
    """Agent steps of random play before learning starts (run_gpu: learn_start)."""
    minibatch_size: Count = 32
    """Transitions per update (run_gpu: minibatch_size)."""
    update_frequency: Count = 4
    """Agent steps per update (run_gpu: update_freq)."""
    target_update_frequency: Count = 10_000
    """Agent steps, not updates, between copies to the target network (run_gpu: target_q; NeuralQLearner perceive)."""
    learning_rate: Positive = 0.00025
    """Constant step size of RMSProp (run_gpu: lr)."""
    rmsprop_decay: Annotated[float, Bounds(0, 1, with_high=False)] = 0.95
    """Decay of both running means of the gradient (NeuralQLearner.lua: qLearnMinibatch)."""
    rmsprop_minimum: Positive = 0.01
    """Added to the gradient's variance inside the root (NeuralQLearner.lua: qLearnMinibatch)."""
    discount: Probability = 0.99
    """Discount factor per agent step (run_gpu: discount)."""
    epsilon_start: Probability = 1.0
    """Probability of a random action until learning starts (run_gpu: ep)."""
    epsilon_end: Probability = 0.1
    """Probability of a random action after the decay (run_gpu: ep_end)."""
    epsilon_decay_steps: Count = 1_000_000
    """Agent steps of linear decay, from replay-start-size on (run_gpu: ep_endt = replay_memory)."""
    sticky_actions: Probability = 0.0
    """Probability that the emulator repeats the last action instead; 0 in the paper, 0.25 in later work."""
    evaluate_every: Annotated[int, Bounds(0, MOST)] = 250_000
    """Agent steps between evaluations by the paper's protocol, 0 for never (run_gpu: eval_freq)."""
    evaluation_games: Annotated[int, Bounds(1, MAX_ENVS)] = 30
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

    def evaluations_until(self, agent_steps: int) -> int:
        """Evaluations that belong to the first `agent_steps`."""
        return agent_steps // self.evaluate_every if self.evaluate_every else 0

    @property
    def rom(self) -> str:
        """The ROM that the game's name means; raises `UsageError` when there is none."""
        return rom_name(self.game)

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot be."""
        check_bounds(self)
        if self.replay_start_size < self.num_envs:
            least = f"at least one step of each environment, {self.num_envs}"
            raise UsageError(f"--replay-start-size {self.replay_start_size} cannot be: it must be {least}")
        if self.epsilon_end > self.epsilon_start:
            raise UsageError(f"--epsilon-end {self.epsilon_end} lies above --epsilon-start {self.epsilon_start}")

    def check_memory(self, device: torch.device) -> None:
        """Raise `UsageError` unless the replay memory and the minibatches fit on a device."""
        free = check_size(self.replay_size, self.num_envs, device)
        updates = -(-self.num_envs // self.update_frequency)  # of one vector step: their minibatches are drawn at once
        gigabytes = (updates * BYTES_DRAWN + BYTES_LEARNING) * self.minibatch_size / 1e9
        if gigabytes > free:
            needs = f"--minibatch-size {self.minibatch_size} needs about {gigabytes:.1f} GB for {updates} update(s)"
            raise UsageError(
                f"{needs}, and beside --replay-size {self.replay_size} {free:.1f} GB are free; choose less"
            )


def multiples_crossed(before: int, after: int, period: int) -> int:
    """How many multiples of `period` lie in (before, after]: several environments step at once."""
    return after // period - before // period


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
        sequence = np.random.SeedSequence((self.parameters.seed, EVALUATION_SEEDS, self.evaluations))
        return int(sequence.generate_state(1)[0]) % MAX_EMULATOR_SEED

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
        """When learning starts, draw the states over which the average action value is followed."""
        if self.held_out_states is None and self.agent_steps >= self.parameters.replay_start_size:
            drawn = self.memory.sample(HELD_OUT_STATES, self.generators["sampling"])
            self.held_out_states = drawn.windows[:, :HISTORY_FRAMES].cpu()

    def mean_max_q(self) -> float | None:
        """The paper's average action value: the mean over the held-out states of max Q; None before learning starts."""
        return None if self.held_out_states is None else self.agent.max_q(self.held_out_states).mean().item()

    def take_log_values(self) -> dict[str, float | None]:
        """What TensorBoard is told now and then: the mean loss since the last call; max Q over the held-out states.

        A deviation near 0 is a network that does not tell states apart. It leaves out states with the empty frames of
        a game's start: these differ so much from all others that they hide it (docs/plateau.md).
        """
        loss, states = self.agent.take_mean_loss(), self.held_out_states
        if states is None:
            return {"loss": loss}
        max_q, whole = self.agent.max_q(states).cpu(), states.flatten(2).bool().any(2).all(1)
        deviation = max_q[whole].std(correction=0).item()
        return {"loss": loss, "mean_q_held_out": max_q.mean().item(), "deviation_q_held_out": deviation}

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain values; the memory as a tape."""
        held_out = None
        if self.held_out_states is not None:  # 14 MB, and nearly all background
            packed = zlib.compress(self.held_out_states.numpy().tobytes(), 1)
            held_out = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        tape = self.tape.state_dict()
        return {
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
            pixels = np.frombuffer(zlib.decompress(state["held_out_states"].numpy().tobytes()), np.uint8)
            self.held_out_states = torch.from_numpy(pixels.reshape(-1, HISTORY_FRAMES, FRAME_SIZE, FRAME_SIZE).copy())
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
