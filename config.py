"""The paper's constants and schedules, each with its source, and the flags of its relatives."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from atari import MAX_FRAMES_PER_STEP, GameOptions
from runtime.architecture import Architecture
from runtime.exits import UsageError
from runtime.flags import MOST, Bounds, Count, Positive, Probability, check_bounds, flag
from wrappers import choose_actions, rom_name

MAX_ENVS = 256  # each plays 976 agent steps between two fresh seeds: most games come to their end


@dataclass
class Hyperparameters:
    """Everything that decides what is learned; the defaults are the paper's."""

    game: str
    """The game, by any of its names: BreakoutNoFrameskip-v4, ALE/Breakout-v5, Breakout, breakout."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of the weights, the exploration, the sampling and the emulators."""
    num_envs: Annotated[int, Bounds(1, MAX_ENVS)] = 32
    """Games played in parallel. The paper plays 1; the ratio of updates to agent steps is the same for any number."""
    frames_per_step: Annotated[int, Bounds(1, MAX_FRAMES_PER_STEP)] = 4
    """Frames for which an action is repeated: the length of an agent step (run_gpu: actrep)."""
    actions: tuple[str, ...] = ()
    """Names of the only actions allowed, such as FIRE LEFT RIGHT; the network has an output for each."""
    sticky_actions: Probability = 0.0
    """Probability that the emulator repeats the last action instead; 0 in the paper, 0.25 in later work."""
    network: Literal["nature", "nips2013"] = "nature"
    """Architecture of the network: those of the paper, or of its predecessor (Mnih et al. 2013)."""
    dueling: bool = False
    """One hidden layer for the value of the state, one for what each action adds to it (Wang et al. 2016)."""
    separable: bool = False
    """Each convolution as one per channel, then one across channels: a thirteenth of the multiplications."""
    distributional: Literal["off", "c51", "qr"] = "off"
    """Learn the return's distribution: 51 probabilities (Bellemare et al. 2017) or quantiles (Dabney et al. 2018)."""
    initial_weights: Literal["torch7", "lecun", "xavier"] = "torch7"
    """How weights are drawn: as by the released code, as PFRL's DQN does (LeCun), or as Dopamine's (Xavier)."""
    initial_state_dict: Path | None = None
    """Begin a new run with the weights of this state dict instead; its layers and actions must be the same."""
    replay_size: int = 1_000_000
    """Transitions in the replay memory, a multiple of num-envs (run_gpu: replay_memory)."""
    replay_start_size: int = 50_000
    """Agent steps of random play before learning starts (run_gpu: learn_start)."""
    prioritized: bool = False
    """Draw transitions with larger last TD errors more often (Schaul et al. 2016)."""
    priority_exponent: Probability = 0.6
    """With --prioritized: 0 draws uniformly, 1 in proportion to the error (Schaul et al.: alpha)."""
    importance_exponent: Probability = 0.4
    """With --prioritized: how far a smaller step makes up for being drawn often; rises to 1 (Schaul et al.: beta)."""
    importance_steps: Count = 1_000_000
    """With --prioritized: agent steps from the start of learning until that exponent is 1."""
    minibatch_size: Count = 32
    """Transitions per update (run_gpu: minibatch_size)."""
    update_frequency: Count = 4
    """Agent steps per update (run_gpu: update_freq)."""
    gradient_steps: Annotated[int, Bounds(1, 1_000)] = 1
    """Updates made where the paper makes one; a run learns from each transition that many times as often."""
    target_network: bool = True
    """Without it each update's targets come from the network as the update before left it (Mnih et al. 2013)."""
    target_update_frequency: Count = 10_000
    """Agent steps, not updates, between copies to the target network (run_gpu: target_q; NeuralQLearner perceive)."""
    n_steps: Count = 1
    """Agent steps whose rewards a target sums before the next state's value is added (Sutton 1988)."""
    n_steps_end: Annotated[int | None, Bounds(1, MOST)] = None
    """Number that --n-steps falls to, in a straight line, rounded, after --n-steps-steps; default: it stays."""
    n_steps_steps: Annotated[int | None, Bounds(1, MOST)] = None
    """Agent steps from the start of learning until --n-steps-end is reached."""
    double: bool = False
    """The online network chooses the next action, the target network values it (van Hasselt et al. 2016)."""
    reset_head_every: Annotated[int, Bounds(0, MOST)] = 0
    """Agent steps between fresh weights for the fully connected layers, 0 for never (Nikishin et al. 2022)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Numbers that training multiplies: of 32 bits, or of 16 where the processor or GPU has instructions for these."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """The paper's RMSProp, or PyTorch's Adam with its own decays."""
    learning_rate: Positive = 0.00025
    """Step size of the optimizer, constant in the paper (run_gpu: lr)."""
    learning_rate_end: Annotated[float | None, Bounds(0, 1e30, with_low=False)] = None
    """Step size that is reached, in a straight line, after --learning-rate-steps; default: it stays the same."""
    learning_rate_steps: Annotated[int | None, Bounds(1, MOST)] = None
    """Agent steps from the start of learning until --learning-rate-end is reached."""
    rmsprop_decay: Annotated[float, Bounds(0, 1, with_high=False)] = 0.95
    """Decay of both running means of the gradient (NeuralQLearner.lua: qLearnMinibatch)."""
    min_squared_gradient: Positive = 0.01
    """Added to the gradient's variance inside the root (NeuralQLearner.lua: qLearnMinibatch)."""
    adam_epsilon: Positive = 1e-8
    """Added to the root of the squared gradient's mean by --optimizer adam (Kingma and Ba 2015)."""
    discount: Probability = 0.99
    """Discount factor per agent step (run_gpu: discount)."""
    epsilon_start: Probability = 1.0
    """Probability of a random action until learning starts (run_gpu: ep)."""
    epsilon_end: Probability = 0.1
    """Probability of a random action after the decay (run_gpu: ep_end)."""
    epsilon_decay_steps: Count = 1_000_000
    """Agent steps of linear decay, from replay-start-size on (run_gpu: ep_endt = replay_memory)."""
    evaluate_every: Annotated[int, Bounds(0, MOST)] = 250_000
    """Agent steps between evaluations by the paper's protocol, 0 for never (run_gpu: eval_freq)."""
    evaluation_games: Annotated[int, Bounds(1, MAX_ENVS)] = 30
    """Games per evaluation, those of a sweep's or a search's scores, too (paper, Methods: Evaluation procedure)."""
    deterministic: bool = False
    """On a GPU, use only kernels that always give the same bits, at some cost. A CPU always does."""

    def epsilon(self, agent_steps: np.ndarray) -> np.ndarray:
        """Probability of a random action at each agent step (count,) int64; float64 (NeuralQLearner.lua, eGreedy)."""
        learning_steps = np.maximum(0, agent_steps - self.replay_start_size)
        remaining = np.maximum(0, self.epsilon_decay_steps - learning_steps) / self.epsilon_decay_steps
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * remaining

    def learning_rate_at(self, agent_steps: int) -> float:
        """The step size for the updates of the vector step that begins at `agent_steps`."""
        if self.learning_rate_end is None or self.learning_rate_steps is None:
            return self.learning_rate
        share = self._share_of(self.learning_rate_steps, agent_steps)
        return self.learning_rate + (self.learning_rate_end - self.learning_rate) * share

    def n_steps_at(self, agent_steps: int) -> int:
        """Agent steps that a transition drawn in the vector step that begins at `agent_steps` spans."""
        if self.n_steps_end is None or self.n_steps_steps is None:
            return self.n_steps
        share = self._share_of(self.n_steps_steps, agent_steps)
        return round(self.n_steps + (self.n_steps_end - self.n_steps) * share)

    def importance_exponent_at(self, agent_steps: int) -> float:
        """The exponent of the importance weights in the vector step that begins at `agent_steps`."""
        share = self._share_of(self.importance_steps, agent_steps)
        return self.importance_exponent + (1 - self.importance_exponent) * share

    def _share_of(self, steps: int, agent_steps: int) -> float:
        """How much of `steps`, counted from the start of learning, has gone by at `agent_steps`: 0 to 1."""
        return min(1.0, max(0, agent_steps - self.replay_start_size) / steps)

    def updates_until(self, agent_steps: int) -> int:
        """Updates made in the first `agent_steps`: one at each multiple of `update_frequency` after the warm-up."""
        first = self.replay_start_size // self.update_frequency
        return max(0, agent_steps // self.update_frequency - first)

    def evaluations_until(self, agent_steps: int) -> int:
        """Evaluations that belong to the first `agent_steps`."""
        return agent_steps // self.evaluate_every if self.evaluate_every else 0

    @property
    def rom(self) -> str:
        """The ROM that the game's name means; raises `UsageError` for an unknown one."""
        return rom_name(self.game)

    @property
    def rules(self) -> GameOptions:
        """How the game is played; a state dict of the network holds it, too."""
        return GameOptions(self.frames_per_step, tuple(self.actions), self.sticky_actions)

    @property
    def architecture(self) -> Architecture:
        """Which network learns."""
        return Architecture(self.network, self.dueling, self.separable, self.distributional)

    def check(self) -> None:
        """Raise `UsageError` for a value that is not allowed, alone or with the others."""
        check_bounds(self)
        if self.replay_start_size < self.num_envs * self.n_steps:
            least = f"at least {self.num_envs * self.n_steps}, --n-steps {self.n_steps} of each environment"
            raise UsageError(f"--replay-start-size must be {least}, got {self.replay_start_size}")
        if self.epsilon_end > self.epsilon_start:
            raise UsageError(
                f"--epsilon-end must be at most --epsilon-start {self.epsilon_start}, got {self.epsilon_end}"
            )
        if (self.learning_rate_end is None) != (self.learning_rate_steps is None):
            raise UsageError("--learning-rate-end and --learning-rate-steps need each other; give both or neither")
        if (self.n_steps_end is None) != (self.n_steps_steps is None):
            raise UsageError("--n-steps-end and --n-steps-steps need each other; give both or neither")
        if self.n_steps_end is not None and self.n_steps_end >= self.n_steps:
            raise UsageError(f"--n-steps-end must be below --n-steps {self.n_steps}, got {self.n_steps_end}")
        self._check_companions()
        choose_actions(self.rom, self.rules.actions)

    def _check_companions(self) -> None:
        """Raise `UsageError` for a flag that has no effect, for want of the one that it belongs to."""
        rmsprop = self.optimizer == "rmsprop"
        needs: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
            ("--prioritized", self.prioritized, ("priority_exponent", "importance_exponent", "importance_steps")),
            ("--optimizer rmsprop", rmsprop, ("rmsprop_decay", "min_squared_gradient")),
            ("--optimizer adam", not rmsprop, ("adam_epsilon",)),
            ("--target-network", self.target_network, ("double", "target_update_frequency")),
        )
        defaults = {field.name: field.default for field in dataclasses.fields(Hyperparameters)}
        for companion, is_there, names in needs:
            for name in names:
                if not is_there and getattr(self, name) != defaults[name]:
                    usual = f"--no-{name}" if defaults[name] is False else f"{flag(name)} {defaults[name]}"
                    raise UsageError(f"{flag(name)} needs {companion}; add that, or type {usual}")
