"""The relatives: each rule of learning against plain NumPy, and on the corridor against values computed by hand."""

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import begun
from naive_play import NaivePlay
from test_learning import CELLS, DISCOUNT, QUIT_REWARD, TRUE_VALUES, play_corridor, states_on_the_way
from test_optimizers import lua_step
from torch import Tensor

from atari import GameOptions
from config import Hyperparameters
from model import QNetwork
from optimizers import Adam
from q_agent import QAgent
from q_agent_train import step
from relatives.chosen import agent_for, optimizer_for
from relatives.head_reset import head_of, reset_head
from relatives.multi_step import MultiStepMemory
from relatives.networks import build_network
from relatives.prioritized import PrioritizedMemory, WeightedBatch, weighted_sum
from replay_memory import Batch, ReplayMemory
from runtime.architecture import Architecture
from runtime.checkpoint import save_state_dict
from runtime.cuda_graphs import capture_cuda_graphs
from runtime.networks import architecture_of, load_network
from wrappers import AtariGames

ARCHITECTURES = [
    Architecture(network, dueling, separable)
    for network in ("nature", "nips2013")
    for dueling in (False, True)
    for separable in (False, True)
] + [Architecture("nips2013", dueling, distributional=kind) for dueling in (False, True) for kind in ("c51", "qr")]
MINIBATCH = 16


@dataclass(frozen=True)
class Rule:
    """A rule of learning, as the flags name it."""

    double: bool = False
    target_network: bool = True
    adam: bool = False
    priority_exponent: float | None = None
    importance_exponent: float = 0.0
    learning_rate: float = 0.005
    min_squared_gradient: float = 0.01
    n_steps: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"


PAPER = Rule()


class Table(QNetwork):
    """A value for each cell of the corridor and action, which the column that is bright picks."""

    def __init__(self) -> None:
        super().__init__("corridor", 2)

    def add_convolutions(self, history_frames: int) -> int:
        return history_frames

    def add_head(self, num_features: int) -> None:
        self.values = torch.nn.Linear(CELLS, 2, bias=False)

    def features(self, states: Tensor) -> Tensor:
        return states[:, -1, 0, :: 84 // CELLS] / 255


def new_agent(rule: Rule, architecture: Architecture | None = None, device: str = "cpu") -> QAgent:
    """An agent with a table of values, or with a network; on a GPU one that learns by graphs."""
    torch.manual_seed(1)
    network = Table() if architecture is None else build_network("corridor", 2, architecture)
    return agent_of(network.to(device), rule)


def agent_of(network: QNetwork, rule: Rule) -> QAgent:
    """The agent that learns a network by a rule."""
    flags = Hyperparameters(
        "corridor",
        minibatch_size=MINIBATCH,
        double=rule.double,
        target_network=rule.target_network,
        precision=rule.precision,
        optimizer="adam" if rule.adam else "rmsprop",
        learning_rate=rule.learning_rate,
        min_squared_gradient=rule.min_squared_gradient,
    )
    agent = agent_for(flags, network, optimizer_for(flags, network))
    if rule.priority_exponent is not None:
        agent.sum_losses = weighted_sum
    if agent.device.type == "cuda":
        capture_cuda_graphs(agent)
    return agent


def played(size: int, rule: Rule = PAPER) -> ReplayMemory:
    """A memory, of the kind that the rule draws from, of walks in the corridor."""
    memory = new_memory(size, rule)
    play_corridor(memory)
    return memory


def new_memory(size: int, rule: Rule) -> ReplayMemory:
    """The empty memory that a rule draws from."""
    if rule.priority_exponent is not None:
        exponent, span = rule.priority_exponent, rule.n_steps
        memory = PrioritizedMemory(
            size, 1, discount=DISCOUNT, n_steps=span, minibatch_size=MINIBATCH, priority_exponent=exponent
        )
        memory.importance_exponent = rule.importance_exponent
        return memory
    if rule.n_steps > 1:
        return MultiStepMemory(size, 1, discount=DISCOUNT, n_steps=rule.n_steps)
    return ReplayMemory(size, 1, discount=DISCOUNT)


def learn(agent: QAgent, memory: ReplayMemory, updates: int, *, copy_every: int = 16) -> None:
    """Learn from the memory as training does; `copy_every` updates, 0 for never."""
    generator = np.random.default_rng(1)
    learn_from = memory.learning_by(agent.learn) if isinstance(memory, PrioritizedMemory) else agent.learn
    for update in range(updates):
        learn_from(memory.sample(MINIBATCH, generator))
        if copy_every and (update + 1) % copy_every == 0:
            agent.copy_target()


@torch.no_grad()
def values_of(agent: QAgent) -> np.ndarray:
    """The Q-values, (CELLS, 2), of each cell as one meets it who walked there."""
    return agent.online_network(torch.from_numpy(states_on_the_way())).numpy()


# The networks.


def test_each_network_has_the_parameters_that_its_layers_say() -> None:
    counts = {
        each: [sum(p.numel() for p in build_network("x", actions, each).parameters()) for actions in (4, 6, 18)]
        for each in ARCHITECTURES
    }
    assert counts[Architecture()] == [1_686_180, 1_687_206, 1_693_362]
    assert counts[Architecture("nips2013")] == [677_172, 677_686, 680_770]
    assert counts[Architecture(dueling=True)][:2] == [3_292_837, 3_293_863]
    assert counts[Architecture(separable=True)][0] == 1_615_812
    assert counts[Architecture(dueling=True, separable=True)][1] == 3_223_495  # as in GamePlay, whose head is the same
    hidden = 2592 * 256 + 256
    assert counts[Architecture("nips2013", dueling=True)][0] == 677_172 + hidden + 257


def plain_convolution(maps: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """One filter per channel: maps (channels, height, width), weight (channels, kernel, kernel)."""
    maps = np.pad(maps, ((0, 0), (padding, padding), (padding, padding)))
    size, kernel = (maps.shape[1] - weight.shape[1]) // stride + 1, weight.shape[1]
    out = np.zeros((len(maps), size, size))
    for y in range(size):
        for x in range(size):
            patch = maps[:, y * stride : y * stride + kernel, x * stride : x * stride + kernel]
            out[:, y, x] = (patch * weight).sum((1, 2))
    return out


def test_a_dueling_separable_network_computes_what_its_parts_say() -> None:
    torch.manual_seed(0)
    network = build_network("x", 5, Architecture(dueling=True, separable=True))
    weights = {name: parameter.detach().double().numpy() for name, parameter in network.named_parameters()}
    state = np.random.default_rng(0).integers(256, size=(4, 84, 84)).astype(np.uint8)
    maps = state / 255.0
    for name, stride, padding in (("conv1", 4, 1), ("conv2", 2, 0), ("conv3", 1, 0)):
        maps = plain_convolution(maps, weights[f"{name}.0.weight"][:, 0], stride, padding)
        maps = np.einsum("oc,cyx->oyx", weights[f"{name}.1.weight"][:, :, 0, 0], maps).clip(0)
    features = (weights["hidden.weight"] @ maps.transpose(1, 2, 0).flatten() + weights["hidden.bias"]).clip(0)
    value = weights["state_value.weight"] @ features[:512] + weights["state_value.bias"]
    advantages = weights["values.weight"] @ features[512:] + weights["values.bias"]
    with torch.no_grad():
        q_values = network(torch.from_numpy(state)[None])[0].numpy()
    np.testing.assert_allclose(q_values, value + advantages - advantages.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_state_dict_alone_is_enough_for_every_network(tmp_path: Any, architecture: Architecture) -> None:
    rules = GameOptions(frames_per_step=2, actions=("FIRE", "LEFT"), sticky_actions=0.25)
    network = build_network("breakout", 2, architecture, rules)
    save_state_dict(network.state_dict(), tmp_path / "model.pt")
    loaded = load_network(tmp_path / "model.pt")
    assert (architecture_of(loaded), loaded.rules, loaded.num_actions) == (architecture, rules, 2)
    assert type(loaded).__mro__[1:] == type(network).__mro__[1:]
    states = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(loaded(states), network(states))


def test_the_state_dict_of_the_papers_network_says_nothing_new() -> None:
    described = {"game": "breakout", "num_actions": 4, "input": [4, 84, 84]}
    for network in (QNetwork("breakout", 4), build_network("breakout", 4)):
        assert type(network) is QNetwork
        assert network.state_dict()["_extra_state"] == described


@pytest.mark.parametrize("kind", ["torch7", "lecun", "xavier"])
def test_initial_weights_are_spread_as_their_source_spreads_them(kind: str) -> None:
    torch.manual_seed(0)
    network = build_network("x", 18, initial_weights=kind)
    for name in ("conv2", "hidden", "values"):
        weight, bias = network.get_parameter(f"{name}.weight"), network.get_parameter(f"{name}.bias")
        fan_in, fan_out = weight[0].numel(), weight.numel() // weight.shape[1]
        largest = {"torch7": fan_in**-0.5, "lecun": 10.0, "xavier": (6 / (fan_in + fan_out)) ** 0.5}[kind]
        deviation = fan_in**-0.5 if kind == "lecun" else largest / 3**0.5
        assert weight.std().item() == pytest.approx(deviation, rel=0.03)
        assert weight.abs().max().item() <= largest
        if kind == "torch7":
            assert 0.9 * largest < bias.abs().max().item() <= largest
        else:
            expected = 0.1 if kind == "lecun" and name != "values" else 0.0  # PFRL's LargeAtariCNN, Dopamine
            assert torch.equal(bias, torch.full_like(bias, expected))


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_fresh_head_leaves_the_convolutions_and_every_generator_alone(architecture: Architecture) -> None:
    def build() -> QNetwork:
        return build_network("x", 4, architecture, initial_weights="lecun")

    torch.manual_seed(0)
    network, other = build(), build()
    agents = [agent_of(each, PAPER) for each in (network, other)]
    before, generator = copy.deepcopy(dict(network.named_parameters())), torch.get_rng_state()
    for agent in agents:
        reset_head(agent, build, 7)
    assert torch.equal(torch.get_rng_state(), generator)
    for name, parameter in network.named_parameters():
        drawn_anew = not name.startswith("conv")
        assert torch.equal(parameter, before[name]) == (not drawn_anew or name.endswith("bias"))  # lecun's are constant
        if not name.endswith("bias"):
            assert torch.equal(parameter, other.get_parameter(name)) == drawn_anew
        if drawn_anew and parameter.numel() > 500:
            assert parameter.std().item() == pytest.approx(before[name].std().item(), rel=0.1, abs=1e-6)
        assert torch.equal(parameter, agents[0].target_network.get_parameter(name))
    reset_head(agents[0], build, 8)
    assert not torch.equal(network.hidden.weight, other.hidden.weight)


# The update, against NumPy in float64.


class NaiveAgent:
    """The same rule on an independent network: targets by hand, one transition at a time, float64 optimizers."""

    def __init__(self, agent: QAgent, rule: Rule):
        self.online, self.target = (copy.deepcopy(agent.online_network).double() for _ in range(2))
        self.rule = rule
        size = sum(parameter.numel() for parameter in self.online.parameters())
        self.first, self.second = np.zeros(size), np.zeros(size)

    def q_values(self, network: QNetwork, state: Tensor) -> Tensor:
        maps = state[None].double() / 255
        for name in ("conv1", "conv2"):
            maps = torch.relu(network.get_submodule(name)(maps))
        hidden = torch.relu(network.hidden(maps.permute(0, 2, 3, 1).flatten(1)))
        return network.values(hidden)[0]

    def learn(self, drawn: Batch, learning_rate: float, weights: np.ndarray) -> list[float]:
        """One update of a minibatch; returns the TD errors."""
        self.online.zero_grad()
        errors = []
        for i, (state, next_state) in enumerate(zip(drawn.states, drawn.next_states, strict=True)):
            with torch.no_grad():
                online, target = (self.q_values(network, next_state) for network in (self.online, self.target))
                if self.rule.double:
                    bootstrap = target[int(online.argmax())]
                else:
                    bootstrap = (target if self.rule.target_network else online).max()
                goal = float(drawn.rewards[i]) + float(drawn.discounts[i]) * float(bootstrap)
            taken = self.q_values(self.online, state)[drawn.actions[i]]
            errors.append(goal - taken.item())
            taken.backward(torch.tensor(-weights[i] * np.clip(errors[-1], -1, 1), dtype=torch.float64))
        flat = torch.cat([parameter.detach().flatten() for parameter in self.online.parameters()]).numpy()
        d = torch.cat(
            [parameter.grad.flatten() for parameter in self.online.parameters() if parameter.grad is not None]
        )
        flat, self.first, self.second = lua_step(flat, -d.numpy(), self.first, self.second, learning_rate)
        begin = 0
        with torch.no_grad():
            for parameter in self.online.parameters():
                parameter.copy_(torch.from_numpy(flat[begin : begin + parameter.numel()].reshape(parameter.shape)))
                begin += parameter.numel()
        return errors

    def weights(self) -> dict[str, Tensor]:
        return dict(self.online.named_parameters())


RULES: dict[str, Rule] = {
    "the paper's": Rule(),
    "double": Rule(double=True),
    "no target network": Rule(target_network=False),
    "prioritized": Rule(priority_exponent=0.7, importance_exponent=0.5),
    "double and prioritized": Rule(double=True, priority_exponent=0.6, importance_exponent=1.0),
    "another learning rate": Rule(learning_rate=0.0005),
    "three steps": Rule(n_steps=3),
    "double, prioritized, two steps": Rule(double=True, priority_exponent=0.6, importance_exponent=1.0, n_steps=2),
}


@pytest.mark.parametrize("name", RULES)
def test_three_updates_are_those_of_a_naive_agent(name: str) -> None:
    """In one call, as a vector step makes them."""
    rule = RULES[name]
    memory, agent = played(300, rule), new_agent(rule, Architecture("nips2013"))
    if isinstance(memory, PrioritizedMemory):
        chances = np.random.default_rng(4).random(memory.probabilities.shape).astype(np.float32)
        memory.probabilities[:] = chances ** np.float32(memory._priority_exponent)
    with torch.no_grad():  # target and online network choose differently
        agent.online_network.values.bias.add_(torch.tensor([0.3, 0.0]))
    naive = NaiveAgent(agent, rule)
    with torch.no_grad():
        agent.target_network.values.bias.copy_(torch.tensor([0.0, 0.4]))
        naive.target.values.bias.copy_(torch.tensor([0.0, 0.4]))
    drawn = memory.sample(3 * MINIBATCH, np.random.default_rng(3))
    rate = rule.learning_rate
    if name == "another learning rate":
        rate = 0.002
        agent.optimizer.set_learning_rate(rate)
    errors = agent.learn(drawn)
    expected: list[float] = []
    for begin in range(0, 3 * MINIBATCH, MINIBATCH):
        part = slice(begin, begin + MINIBATCH)
        batch = Batch(
            drawn.states[part], drawn.actions[part], drawn.rewards[part], drawn.discounts[part], drawn.next_states[part]
        )
        weights = np.ones(MINIBATCH)
        if isinstance(memory, PrioritizedMemory):
            chances, total = memory.probabilities.flatten(), float(memory.probabilities.sum())
            probabilities = [float(chances[place]) / total for place in memory._drawn[part]]
            weights = np.array([(300 * p) ** -rule.importance_exponent for p in probabilities])
            weights /= max(weights)
        expected.extend(naive.learn(batch, rate, weights))
    for parameter_name, value in naive.weights().items():
        np.testing.assert_allclose(
            agent.online_network.get_parameter(parameter_name).detach().numpy(), value.detach().numpy(), atol=2e-6
        )
    np.testing.assert_allclose(errors, np.array(expected), atol=1e-5)
    assert agent.means.take().keys() == {"loss", "mean_q", "deviation_q"}
    assert agent.means.take() == {}


# The corridor.

# By hand: of two steps, the second is what the player of `played` chose, who walks on with probability 0.7.
SECOND_IS_QUIT = 0.3 * DISCOUNT * QUIT_REWARD
WALKING_OF_TWO_STEPS = [0.0, SECOND_IS_QUIT + 0.7 * DISCOUNT**2, SECOND_IS_QUIT + 0.7 * DISCOUNT, 1.0]
WALKING_OF_TWO_STEPS[0] = SECOND_IS_QUIT + 0.7 * DISCOUNT**2 * WALKING_OF_TWO_STEPS[2]


@pytest.mark.parametrize(
    ("architecture", "adam", "n_steps"),
    [
        (Architecture("nips2013"), False, 2),
        (Architecture("nips2013", dueling=True), False, 1),
        (Architecture("nips2013", dueling=True, separable=True), True, 1),
        (Architecture("nips2013", distributional="c51"), True, 1),
        (Architecture("nips2013", dueling=True, distributional="qr"), True, 2),
    ],
    ids=str,
)
def test_every_network_learns_the_corridor(architecture: Architecture, adam: bool, n_steps: int) -> None:
    rule = Rule(adam=adam, learning_rate=0.0005, n_steps=n_steps)
    agent, memory = new_agent(rule, architecture), played(500, rule)
    learn(agent, memory, 240)
    np.testing.assert_allclose(values_of(agent)[:, 0], QUIT_REWARD, atol=0.1)
    # Means of quantiles by a Huber loss are a little off where the distribution is lopsided.
    walking = TRUE_VALUES[:, 1] if n_steps == 1 else WALKING_OF_TWO_STEPS
    np.testing.assert_allclose(values_of(agent)[:, 1], walking, atol=0.15)


@pytest.mark.parametrize("adam", [True, False])
def test_the_optimizer_forgets_a_head_that_is_drawn_anew(adam: bool) -> None:
    agent, memory = new_agent(Rule(adam=adam), Architecture("nips2013")), played(500)
    learn(agent, memory, 8)
    reset_head(agent, lambda: build_network("corridor", 2, Architecture("nips2013")), 3)
    assert torch.equal(agent.optimizer.weights, agent._target_weights)
    size = sum(parameter.numel() for parameter in head_of(agent.online_network))
    for mean in (agent.optimizer.gradient_mean, agent.optimizer.squared_gradient_mean):
        assert mean[:-size].any()
        assert not mean[-size:].any()
    if isinstance(agent.optimizer, Adam):
        assert agent.optimizer.updates.tolist() == [8, 0]


# The flags.


def tiny(**changes: Any) -> Hyperparameters:
    sizes = {"num_envs": 4, "replay_size": 160, "replay_start_size": 40, "minibatch_size": 4}
    return Hyperparameters("pong", **{**sizes, **changes})


@pytest.mark.parametrize("initial_weights", ["torch7", "lecun", "xavier"])
def test_the_flags_of_the_network_reach_it(initial_weights: Any) -> None:
    shape: dict[str, Any] = {"network": "nips2013", "dueling": True, "separable": True}
    rules: dict[str, Any] = {"frames_per_step": 3, "actions": ("FIRE", "LEFT"), "sticky_actions": 0.5}
    training = begun(tiny(seed=5, initial_weights=initial_weights, **shape, **rules))
    torch.manual_seed(5)
    drawn = build_network("pong", 2, Architecture(**shape), GameOptions(**rules), initial_weights=initial_weights)
    network = training.agent.online_network
    assert architecture_of(network) == architecture_of(drawn) == Architecture(**shape)
    assert (network.rules, network.num_actions) == (drawn.rules, 2)
    for own, other in zip(network.parameters(), drawn.parameters(), strict=True):
        assert torch.equal(own, other)
    training.close()


def test_the_rules_of_the_flags_are_those_of_the_games_that_are_learned_from() -> None:
    rules = GameOptions(3, ("RIGHTFIRE", "LEFT"), 0.25)
    flags: dict[str, Any] = {"frames_per_step": 3, "actions": rules.actions, "sticky_actions": 0.25}
    training = begun(tiny(**flags))
    games = AtariGames("pong", 4, rules)
    seed = training.action_log.state_dict()["seeds"][0]
    memory = ReplayMemory(160, 4)
    memory.start(0, games.reset(seed))
    for _ in range(8):
        step(training)
        log = training.action_log.state_dict()["actions"][-1]
        actions = np.frombuffer(log.tobytes(), np.uint8)[-4:].astype(np.int64)
        games.send(actions)
        memory.append(actions, games.receive())
    assert torch.equal(training.memory.frames, memory.frames)
    games.close()
    training.close()


def test_rates_and_errors_go_between_clock_agent_and_memory() -> None:
    """At each step those of the clock; the errors of what was drawn become its priorities before the next draw."""
    parameters = tiny(
        prioritized=True, importance_steps=20, learning_rate_end=1e-6, learning_rate_steps=30, gradient_steps=2
    )
    training, seen = begun(parameters), list[tuple[float | None, float]]()
    learn_as_before, memory = training.agent.learn, training.memory
    assert isinstance(memory, PrioritizedMemory)

    def note(batch: Batch) -> Tensor:
        rate = training.agent.optimizer.rate_now
        seen.append((None if rate is None else rate.item(), memory.importance_exponent))
        assert isinstance(batch, WeightedBatch)
        assert batch.weights is not None
        chances = memory.probabilities.flatten()[memory._drawn]  # of this batch, none changed since
        weights = (chances.astype(np.float64) ** -memory.importance_exponent).reshape(-1, 4)
        expected = (weights / weights.max(1, keepdims=True)).flatten()
        np.testing.assert_allclose(batch.weights, expected, rtol=1e-6)
        errors = learn_as_before(batch)
        last.update(zip(memory._drawn.tolist(), errors.tolist(), strict=True))
        return errors

    training.agent.learn = note  # type: ignore[method-assign]
    for _ in range(20):
        steps, known, last = training.agent_steps, len(seen), dict[int, float]()
        step(training)
        rate = float(np.float32(parameters.learning_rate_at(steps)))
        expected = (rate, parameters.importance_exponent_at(steps))
        assert seen[known:] == ([expected] * 2 if steps >= 40 else [])
        for place, error in last.items():
            if place // 4 != memory.row % memory.num_rows:  # the row that was begun since
                chance = memory.probabilities.flatten()[place]
                assert chance == pytest.approx(min(abs(error) + 2e-6, 1) ** 0.6, rel=1e-5)
    assert len(set(seen)) > 5
    training.close()


def test_transitions_of_one_step_are_the_papers() -> None:
    """The same play, the same generator: the same batches, and the same generator behind them."""
    paper, one_step = ReplayMemory(60, 3), MultiStepMemory(60, 3, n_steps=1)
    play, generators = NaivePlay(3, 20, seed=5), [np.random.default_rng(6) for _ in range(2)]
    play.start(paper, one_step)
    for number in range(70):  # past the ring's end, three times
        play.step()
        if number % 25 == 24:
            play.start()
        assert torch.equal(paper.latest_states(), one_step.latest_states())
        if number > 2:
            first, second = (
                vars(memory.sample(40, generator))
                for memory, generator in zip((paper, one_step), generators, strict=True)
            )
            assert first.keys() == second.keys()
            assert all(value is second[name] or torch.equal(value, second[name]) for name, value in first.items())
    assert generators[0].bit_generator.state == generators[1].bit_generator.state


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adam", "double and prioritized", "no target network"])
def test_a_cuda_graph_learns_by_each_rule_what_a_cpu_learns(name: str) -> None:
    """With a rate that changes within one graph, and a fresh head between two of its replays."""
    if not torch.cuda.is_available():
        pytest.skip("there is no cuda device here")
    torch.backends.cudnn.allow_tf32 = False
    rule, architecture = {**RULES, "adam": Rule(adam=True)}[name], Architecture("nips2013")
    memory, agents = played(300, rule), [new_agent(rule, architecture, device) for device in ("cpu", "cuda")]
    for seed in range(6):
        drawn = memory.sample(2 * MINIBATCH, np.random.default_rng(seed))
        if isinstance(drawn, WeightedBatch):
            chances = np.random.default_rng(seed).random((2, MINIBATCH)) ** -rule.importance_exponent
            drawn.weights = torch.from_numpy((chances / chances.max(1, keepdims=True)).flatten()).float()
        errors = []
        for agent in agents:
            agent.optimizer.set_learning_rate(1e-4 * (seed + 1))
            errors.append(agent.learn(replace(drawn)).cpu())
        np.testing.assert_allclose(errors[1], errors[0], rtol=1e-2, atol=1e-4)
        if seed == 3:
            for agent in agents:
                reset_head(agent, lambda: build_network("corridor", 2, architecture), 7)
        on_cpu, on_cuda = (agent.state_dict() for agent in agents)
        for part in ("online", "target", "gradient_mean", "squared_gradient_mean"):
            # Adam's first steps are the rate times the gradient's sign, which may be rounding alone.
            atol = 5e-3 if (name, part) in (("adam", "online"), ("adam", "target")) else 1e-4
            torch.testing.assert_close(on_cuda[part], on_cpu[part], rtol=1e-2, atol=atol, msg=part)
