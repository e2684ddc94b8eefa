"""Flags: everything that decides what is learned, what belongs to a run, and files of them (configs/)."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import torch
import yaml

from atari import MAX_FRAMES_PER_STEP, Rules
from machine.devices import bfloat16_instructions
from machine.exits import UsageError
from machine.flags import (
    MOST,
    Bounds,
    Count,
    Positive,
    Probability,
    check_bounds,
    flag,
    parse,
    take_numbers_as_meant,
)
from machine.memory_size import check_size
from machine.networks import architecture_of, load_network
from model import QNetwork
from relatives.networks import Architecture
from wrappers import choose_actions, rom_name

MAX_ENVS = 256  # each plays 976 agent steps between two fresh seeds: most games come to their end
# Of each transition: its window of bytes and the target network's layers; the online network's, twice.
BYTES_DRAWN, BYTES_LEARNING = 200_000, 400_000
CONFIGS = Path(__file__).parent / "configs"
FLAGS = {  # the headings of --help
    "run": ("run_dir", "config", "initial_state_dict", "steps", "games", "seed", "device", "deterministic"),
    "game": ("game", "num_envs", "frames_per_step", "actions", "sticky_actions"),
    "network": ("network", "dueling", "separable", "distributional", "initial_weights"),
    "memory": (
        *("replay_size", "replay_start_size"),
        *("prioritized", "priority_exponent", "importance_exponent", "importance_steps"),
    ),
    "learning": (
        *("minibatch_size", "update_frequency", "updates_per_period", "target_network", "target_update_frequency"),
        *("discount", "n_steps", "n_steps_end", "n_steps_steps", "double", "reset_head_every", "precision"),
    ),
    "optimizer": (
        *("optimizer", "learning_rate", "learning_rate_end", "learning_rate_steps"),
        *("rmsprop_decay", "rmsprop_minimum", "adam_epsilon"),
    ),
    "exploration": ("epsilon_start", "epsilon_end", "epsilon_decay_steps"),
    "saving": ("save_every_games", "checkpoint_minutes", "webhook"),
    "evaluation": ("evaluate_every", "evaluation_games"),
}
NOT_KEPT = ("run_dir", "config", "webhook")  # flags that are no part of config.json
MAY_GROW = ("games", "steps")  # the flags that lengthen a run
MAY_CHANGE = (*NOT_KEPT, *MAY_GROW, "device", "save_every_games", "checkpoint_minutes")  # nothing learned hangs on them


AnyConfig = TypeVar("AnyConfig", bound="RunConfig")


@dataclass
class Hyperparameters:
    """Everything that decides what is learned; the defaults are the paper's."""

    game: str
    """The game, by any of its names: BreakoutNoFrameskip-v4, ALE/Breakout-v5, Breakout, breakout."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of the weights, the exploration, the sampling and the emulators."""
    num_envs: Annotated[int, Bounds(1, MAX_ENVS)] = 32
    """Games played side by side. The paper plays 1; the ratio of updates to agent steps is the same for any number."""
    frames_per_step: Annotated[int, Bounds(1, MAX_FRAMES_PER_STEP)] = 4
    """Frames for which an action is repeated; an agent step has so many (run_gpu: actrep)."""
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
    """Draw a transition the more often, the larger its last TD error was (Schaul et al. 2016)."""
    priority_exponent: Probability = 0.6
    """With --prioritized: 0 draws all alike, 1 in proportion to the error (Schaul et al.: alpha)."""
    importance_exponent: Probability = 0.4
    """With --prioritized: how far a smaller step makes up for being drawn often; rises to 1 (Schaul et al.: beta)."""
    importance_steps: Count = 1_000_000
    """With --prioritized: agent steps from the start of learning until that exponent is 1."""
    minibatch_size: Count = 32
    """Transitions per update (run_gpu: minibatch_size)."""
    update_frequency: Count = 4
    """Agent steps per update (run_gpu: update_freq)."""
    updates_per_period: Annotated[int, Bounds(1, 1_000)] = 1
    """Updates made where the paper makes one; a run learns from each transition that many times as often."""
    target_network: bool = True
    """Without it each update's targets come from the network as the update before left it (Mnih et al. 2013)."""
    target_update_frequency: Count = 10_000
    """Agent steps, not updates, between copies to the target network (run_gpu: target_q; NeuralQLearner perceive)."""
    n_steps: Count = 1
    """Agent steps whose rewards a target sums before the next state's value is added (Sutton 1988)."""
    n_steps_end: Annotated[int | None, Bounds(1, MOST)] = None
    """Number that --n-steps falls to, in equal parts, after --n-steps-steps; default: it stays the same."""
    n_steps_steps: Annotated[int | None, Bounds(1, MOST)] = None
    """Agent steps from the start of learning until --n-steps-end is reached."""
    double: bool = False
    """The online network chooses the next action, the target network values it (van Hasselt et al. 2016)."""
    reset_head_every: Annotated[int, Bounds(0, MOST)] = 0
    """Agent steps between fresh weights for the fully connected layers, 0 for never (Nikishin et al. 2022)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Numbers that training multiplies: of 32 bits, or of 16 where the processor or GPU has instructions for these."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """The paper's RMSProp, or PyTorch's Adam with its own constants but for the learning rate."""
    learning_rate: Positive = 0.00025
    """Step size of the optimizer, constant in the paper (run_gpu: lr)."""
    learning_rate_end: Annotated[float | None, Bounds(0, 1e30, with_low=False)] = None
    """Step size that is reached, in a straight line, after --learning-rate-steps; default: it stays the same."""
    learning_rate_steps: Annotated[int | None, Bounds(1, MOST)] = None
    """Agent steps from the start of learning until --learning-rate-end is reached."""
    rmsprop_decay: Annotated[float, Bounds(0, 1, with_high=False)] = 0.95
    """Decay of both running means of the gradient (NeuralQLearner.lua: qLearnMinibatch)."""
    rmsprop_minimum: Positive = 0.01
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

    @property
    def rules(self) -> Rules:
        """How the game is played; a state dict of the network knows it, too."""
        return Rules(self.frames_per_step, tuple(self.actions), self.sticky_actions)

    @property
    def architecture(self) -> Architecture:
        """Which network learns."""
        return Architecture(self.network, self.dueling, self.separable, self.distributional)

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot be."""
        check_bounds(self)
        if self.replay_start_size < self.num_envs * self.n_steps:
            least = f"at least {self.n_steps} step(s) of each environment, {self.num_envs * self.n_steps}"
            raise UsageError(f"--replay-start-size {self.replay_start_size} cannot be: it must be {least}")
        if self.epsilon_end > self.epsilon_start:
            raise UsageError(f"--epsilon-end {self.epsilon_end} lies above --epsilon-start {self.epsilon_start}")
        if (self.learning_rate_end is None) != (self.learning_rate_steps is None):
            raise UsageError("--learning-rate-end and --learning-rate-steps belong together; give both or neither")
        if (self.n_steps_end is None) != (self.n_steps_steps is None):
            raise UsageError("--n-steps-end and --n-steps-steps belong together; give both or neither")
        if self.n_steps_end is not None and self.n_steps_end > self.n_steps:
            raise UsageError(f"--n-steps-end {self.n_steps_end} lies above --n-steps {self.n_steps}")
        self._check_companions()
        choose_actions(self.rom, self.rules.actions)

    def _check_companions(self) -> None:
        """Raise `UsageError` for a flag that would do nothing, for want of the one that it belongs to."""
        rmsprop = self.optimizer == "rmsprop"
        needs: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
            ("--prioritized", self.prioritized, ("priority_exponent", "importance_exponent", "importance_steps")),
            ("--optimizer rmsprop", rmsprop, ("rmsprop_decay", "rmsprop_minimum")),
            ("--optimizer adam", not rmsprop, ("adam_epsilon",)),
            ("--target-network", self.target_network, ("double", "target_update_frequency")),
        )
        defaults = {field.name: field.default for field in dataclasses.fields(Hyperparameters)}
        for companion, is_there, names in needs:
            for name in names:
                if not is_there and getattr(self, name) != defaults[name]:
                    usual = f"--no-{name}" if defaults[name] is False else f"{flag(name)} {defaults[name]}"
                    raise UsageError(f"{flag(name)} does nothing without {companion}; add that, or type {usual}")

    def check_device(self, device: torch.device) -> None:
        """Raise `UsageError` unless a device can compute with --precision, and memory and minibatches fit on it."""
        if self.precision == "bfloat16" and not bfloat16_instructions(device):
            raise UsageError(f"--precision bfloat16: this {device} has no instructions for it; leave the flag out")
        free = check_size(self.replay_size, self.num_envs, device, self.n_steps)
        updates = -(-self.num_envs // self.update_frequency)  # of one vector step: their minibatches are drawn at once
        gigabytes = (updates * BYTES_DRAWN + BYTES_LEARNING) * self.minibatch_size / 1e9
        if gigabytes > free:
            needs = f"--minibatch-size {self.minibatch_size} needs about {gigabytes:.1f} GB for {updates} update(s)"
            raise UsageError(
                f"{needs}, and beside --replay-size {self.replay_size} {free:.1f} GB are free; choose less"
            )


@dataclass
class RunConfig(Hyperparameters):
    """A run: what is learned, how long, where, and what is saved."""

    games: Count = 15_000
    """Whole games to play; the run ends at this or at --steps, whichever comes first."""
    steps: Count = 50_000_000
    """Agent steps to play, of 4 frames each in the paper (run_gpu: steps)."""
    device: str = "auto"
    """Where the network and the memory live: cuda, mps, cpu, or auto for the first of them that is there."""
    run_dir: Path | None = None
    """Folder of the run: a new one, or one to go on with. Default: runs/<game>-<date>-<time>-seed<seed>."""
    config: str | None = None
    """A YAML file of flags, a run's config.json, or the name of a file in configs/; what is typed beside it counts."""
    save_every_games: Annotated[int, Bounds(0, MOST)] = 50
    """Finished games between state dicts in state_dicts/, 0 for none."""
    checkpoint_minutes: Positive = 5.0
    """Minutes of wall time between checkpoints."""
    webhook: str | None = dataclasses.field(default=None, repr=False)
    """Address (https) of a Slack or Discord webhook that is told how the run fares. Default: DQN_WEBHOOK_URL."""

    def __post_init__(self) -> None:
        take_numbers_as_meant(self)  # a notebook or a file may give numbers, names and lists in other types
        self.run_dir = Path(self.run_dir) if isinstance(self.run_dir, str) else self.run_dir
        path = self.initial_state_dict
        self.initial_state_dict = Path(path) if isinstance(path, str) else path
        self.actions = tuple(self.actions) if isinstance(self.actions, list) else self.actions

    def check_new(self) -> None:
        """Raise `UsageError` for a new run that would never learn, or lose transitions before it does."""
        warm_up = f"--replay-start-size {self.replay_start_size}"
        if self.replay_start_size > self.replay_size:
            raise UsageError(f"{warm_up} is more than --replay-size {self.replay_size} holds; choose at most that")
        if self.replay_start_size >= self.steps:
            raise UsageError(f"nothing would be learned: {warm_up} is not below --steps {self.steps}")
        self.initial_network()

    def initial_network(self) -> QNetwork | None:
        """The network that --initial-state-dict names; raises `UsageError` where its weights do not fit."""
        if self.initial_state_dict is None:
            return None
        network = load_network(self.initial_state_dict)
        there = architecture_of(network), choose_actions(rom_name(network.game), network.rules.actions)[0]
        here = self.architecture, choose_actions(self.rom, self.rules.actions)[0]
        if there != here:
            (layers, names), (own_layers, own_names) = there, here
            what = f"--initial-state-dict {self.initial_state_dict} does not fit"
            theirs, ours = f"{', '.join(names)}, {layers}", f"{', '.join(own_names)}, {own_layers}"
            raise UsageError(f"{what}: it is for {theirs}; this run has {ours}")
        return network

    def as_json(self) -> dict[str, Any]:
        """The config as config.json holds it; the folder it stands in is its run_dir."""
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name not in NOT_KEPT}
        path = self.initial_state_dict
        return kept | {"actions": [*self.actions], "initial_state_dict": None if path is None else str(path)}

    def _changed(self) -> dict[str, Any]:
        """The flags that are not as by default; those that are no part of config.json are left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != usual[name] and name not in NOT_KEPT}

    def words(self) -> list[str]:
        """The command line, but for --run-dir, that means this config."""
        words: list[str] = []
        for name, value in self._changed().items():
            words += [flag(name), *value] if isinstance(value, tuple) else words_for(name, str(value))
        return words

    def yaml_lines(self) -> list[str]:
        """What is learned, but for game and seed, as lines of a file for --config; what is default is left out."""
        learned = {field.name for field in dataclasses.fields(Hyperparameters)} - {"game", "seed"}
        lines = []
        for name, value in self._changed().items():
            text = f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)
            if name in learned:
                lines.append(f"{flag(name)[2:]}: {text.lower() if isinstance(value, bool) else text}")
        return lines

    def check_continues(self, saved: Self) -> None:
        """Raise `UsageError` where this asks a run for something else than the `saved` one it was begun with."""
        for field in dataclasses.fields(self):
            name, before, now = flag(field.name), getattr(saved, field.name), getattr(self, field.name)
            if field.name in MAY_GROW and now < before:
                which = f"{self.run_dir}, which was begun with {before}"
                raise UsageError(f"{name} {now} would shorten {which}; it may grow")
            same = saved.rom == self.rom if field.name == "game" else now == before
            if field.name not in MAY_CHANGE and not same:
                way_out = "leave the flag out to go on with the run, or choose another --run-dir"
                raise UsageError(f"{name} {now} contradicts {self.run_dir}, which was begun with {before}; {way_out}")


def words_of_file(name: str) -> list[str]:
    """The command line that a YAML or JSON file means, or the file in configs/ of this name; raises `UsageError`."""
    path = Path(name) if os.path.exists(name) or Path(name).suffix else CONFIGS / f"{name}.yaml"
    if path.parent == CONFIGS and not os.path.exists(path):
        there = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise UsageError(f"--config {name} is neither a file nor one of configs/: {there}")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"--config {path} holds no flags; a line of it reads, for example, learning-rate: 0.0001")
    words: list[str] = []
    for key, value in node.value:
        name = str(key.value).replace("_", "-")
        if f"--{name}" in words or f"--no-{name}" in words:
            raise UsageError(f"--config {path}: {name} comes twice; leave one of them out")
        if name.replace("-", "_") in NOT_KEPT:
            raise UsageError(f"--config {path}: {name} is no flag that a file can hold; type it")
        if isinstance(value, yaml.SequenceNode):
            words += [f"--{name}", *(str(each.value) for each in value.value)]
        elif value.value not in ("", "null"):  # what is left open
            words += words_for(name, str(value.value))
    return words


def words_for(name: str, value: str) -> list[str]:
    """The command line that gives a flag this value."""
    typed = flag(name)
    switches = {"true": typed, "false": f"--no-{typed[2:]}"}
    return [switches[value.lower()]] if value.lower() in switches else [typed, value]


def with_file(config: AnyConfig) -> AnyConfig:
    """The config with what its --config file says; raises `UsageError` that names the file."""
    if config.config is None:
        return config
    return dataclasses.replace(
        with_words(config, words_of_file(config.config), f"--config {config.config}"), config=None
    )


def with_words(config: AnyConfig, words: list[str], source: str) -> AnyConfig:
    """The config with what a piece of a command line says; raises `UsageError` that names its source."""
    try:
        return parse(type(config), default=config, words=words)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
