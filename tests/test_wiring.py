"""The paper's constants and the values of the flags reach the parts; each part's own tests take them as given."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import begun

from atari import FRAME_SIZE, FRAMES_PER_STEP, HISTORY_FRAMES
from config import Hyperparameters
from model import QNetwork
from optimizers import RMSProp
from q_agent import QAgent, best_value
from q_agent_train import step
from relatives.distributional import Categorical, DistributionalAgent, Quantiles
from relatives.multi_step import MultiStepMemory
from relatives.prioritized import PrioritizedMemory
from replay_memory import Batch, ReplayMemory
from runtime.run_config import RunConfig
from training import HELD_OUT_STATES, Training
from viewing.evaluator import Evaluator
from wrappers import MAX_FRAMES_PER_GAME, NOOP_MAX_FRAMES, AtariGames


def small_training(num_envs: int, **changes: Any) -> Training:
    """A training of Breakout with a small memory; its games have been started."""
    settings: dict[str, Any] = {"replay_size": 100 * num_envs, "replay_start_size": 2 * num_envs, "minibatch_size": 2}
    parameters = Hyperparameters("breakout", num_envs=num_envs, **{**settings, **changes})
    parameters.check()
    return begun(parameters)


def test_the_defaults_are_the_papers() -> None:
    """Extended Data Table 1; the last four are from run_gpu and the text."""
    table = {
        "minibatch_size": 32,
        "replay_size": 1_000_000,
        "target_update_frequency": 10_000,
        "discount": 0.99,
        "frames_per_step": 4,
        "update_frequency": 4,
        "learning_rate": 0.00025,
        "rmsprop_decay": 0.95,  # "gradient momentum" and "squared gradient momentum"
        "min_squared_gradient": 0.01,
        "epsilon_start": 1.0,
        "epsilon_end": 0.1,
        "epsilon_decay_steps": 1_000_000,
        "replay_start_size": 50_000,
        "evaluate_every": 250_000,
        "steps": 50_000_000,
        "network": "nature",
        "optimizer": "rmsprop",
    }
    config = RunConfig("pong")
    assert {name: getattr(config, name) for name in table} == table
    assert (HISTORY_FRAMES, FRAMES_PER_STEP, FRAME_SIZE, NOOP_MAX_FRAMES, HELD_OUT_STATES) == (4, 4, 84, 30, 500)
    assert MAX_FRAMES_PER_GAME == 108_000  # ALE's: 30 minutes


def test_an_agent_learns_with_the_constants_of_the_flags() -> None:
    constants = {
        "discount": 0.7,
        "n_steps": 2,
        "learning_rate": 1e-3,
        "rmsprop_decay": 0.8,
        "min_squared_gradient": 0.2,
    }
    training = small_training(2, minibatch_size=3, **constants)
    agent = training.agent
    assert isinstance(agent.optimizer, RMSProp)
    assert (agent.optimizer.learning_rate, agent.optimizer.decay, agent.optimizer.minimum) == (1e-3, 0.8, 0.2)
    assert isinstance(training.memory, MultiStepMemory)
    assert (training.memory.discount, training.memory.n_steps, agent.minibatch_size) == (0.7, 2, 3)
    training.close()


def test_without_flags_nothing_but_the_paper_takes_part() -> None:
    training = small_training(2)
    agent, networks = training.agent, (training.agent.online_network, training.agent.target_network)
    assert [type(part) for part in (training.memory, agent, *networks)] == [ReplayMemory, QAgent, QNetwork, QNetwork]
    assert agent.next_values is best_value
    assert agent.target_pass is agent.target_network
    assert agent.optimizer.rate_now is None
    assert (training.schedules, training.events, training.kept_arrays) == ([], [], {})
    for part in (agent, *networks):  # no function of theirs has another in its place
        assert not {"act", "learn", "learn_on_device", "greedy_actions", "features"} & vars(part).keys()
    training.close()


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_prioritized_memory_has_the_constants_of_the_flags(n_steps: int) -> None:
    constants = {"discount": 0.7, "n_steps": n_steps, "priority_exponent": 0.9, "importance_exponent": 0.2}
    flags = {"prioritized": True, "importance_steps": 8, "replay_start_size": 6, "minibatch_size": 3}
    training = small_training(2, **flags, **constants)
    memory, exponents = training.memory, list[float]()
    assert isinstance(memory, PrioritizedMemory)
    assert (memory.discount, memory.n_steps, memory._minibatch_size) == (0.7, n_steps, 3)
    assert memory._priority_exponent == 0.9
    while training.agent_steps < 20:
        exponents.append(memory.importance_exponent)
        step(training)
    assert exponents == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])  # from step 6 to step 14
    training.close()


@pytest.mark.parametrize(("kind", "double", "network"), [("c51", False, Categorical), ("qr", True, Quantiles)])
def test_the_distribution_that_is_chosen_is_learned(
    kind: str, double: bool, network: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, asked = small_training(2, distributional=kind, double=double), list[tuple[str, torch.Size]]()
    agent = training.agent
    assert isinstance(agent, DistributionalAgent)
    while not training.updates_due:
        step(training)

    def spy(name: str) -> None:
        part = getattr(agent, name)
        head = part.head
        assert isinstance(part, network)

        def spied(features: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = head(features)
            asked.append((name, outputs.shape))
            return outputs

        monkeypatch.setattr(part, "head", spied)

    spy("online_network")
    spy("target_network")
    before = agent.optimizer.weights.clone()
    agent.learn(training.memory.sample(2, np.random.default_rng(0)))
    names = ["target_network", *["online_network"] * (2 if double else 1)]  # double asks it which action is best
    assert asked == [(name, (2, 4, 51)) for name in names]
    assert not torch.equal(agent.optimizer.weights, before)
    training.close()


def test_the_steps_of_a_target_fall_with_the_clock() -> None:
    """From 5 to 2, in equal parts in the 40 agent steps from 20 on, when learning begins."""
    training = small_training(2, n_steps=5, n_steps_end=2, n_steps_steps=40, replay_start_size=20)
    memory, spans, drawn = training.memory, list[int](), list[Batch]()
    assert isinstance(memory, MultiStepMemory)
    sample = memory.sample

    def note(count: int, generator: np.random.Generator) -> Batch:
        drawn.append(sample(count, generator))
        return drawn[-1]

    memory.sample = note  # type: ignore[method-assign]
    while training.agent_steps < 80:
        known = len(drawn)
        spans.append(memory.n_steps)
        step(training)
        for batch in drawn[known:]:  # nothing after a lost life counts
            assert set(batch.discounts.tolist()) <= {0.0, float(np.float32(0.99 ** spans[-1]))}
    by_hand = [5] * 14 + [4] * 7 + [3] * 6 + [2] * 13
    assert spans == by_hand
    assert len(drawn) > 10
    training.close()


def test_every_environment_has_the_epsilon_of_its_own_agent_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment i of a vector step that begins at agent step s explores as the released code does in step s + i."""
    training = small_training(3, replay_start_size=6, epsilon_decay_steps=30)
    act, used = training.agent.act, list[float]()

    def note(states: torch.Tensor, epsilon: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        used.extend(epsilon.tolist())
        return act(states, epsilon, generator)

    monkeypatch.setattr(training.agent, "act", note)
    for _ in range(15):
        step(training)
    lua = [0.1 + max(0, (1 - 0.1) * (30 - max(0, steps - 6)) / 30) for steps in range(45)]
    np.testing.assert_allclose(used, lua, rtol=1e-12)
    training.close()


def test_a_step_acts_learns_from_what_is_stored_then_stores_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of `perceive`, with the row of this step not yet complete while the network learns."""
    training = small_training(4, target_update_frequency=4, prioritized=True)
    while training.held_out_states is None:
        step(training)
    order, rows, generators = list[str](), list[int](), list[Any]()

    def spy(part: Any, name: str) -> None:
        function = getattr(part, name)

        def spied(*arguments: Any) -> Any:
            order.append(name)
            rows.append(training.memory.row)
            generators.extend(each for each in arguments if isinstance(each, np.random.Generator))
            return function(*arguments)

        monkeypatch.setattr(part, name, spied)

    for part, names in (
        (training.agent, ("act", "learn", "copy_target")),
        (training.games, ("send", "receive")),
        (training.memory, ("sample", "set_priorities", "append")),
    ):
        for name in names:
            spy(part, name)
    row = training.memory.row
    step(training)
    assert order == ["act", "send", "sample", "learn", "set_priorities", "receive", "append", "copy_target"]
    assert rows == [row] * 7 + [row + 1]
    assert generators == [training.generators["exploration"], training.generators["sampling"]]
    training.close()


def test_the_seed_is_that_of_exploration_sampling_and_emulators() -> None:
    def drawn(seed: int) -> list[int]:
        training = small_training(1, seed=seed)
        numbers = [int(training.generators[name].integers(2**62)) for name in ("exploration", "sampling")]
        training.close()
        return [*numbers, training.action_log.state_dict()["seeds"][0]]

    assert drawn(5) == drawn(5)
    assert len({*drawn(5), *drawn(6)}) == 6


def test_weights_to_begin_with_are_the_target_networks_too() -> None:
    training = small_training(1)
    torch.manual_seed(99)
    other = QNetwork("breakout", 4)
    training.agent.load_weights(other)
    for network in (training.agent.online_network, training.agent.target_network):
        for own, given in zip(network.parameters(), other.parameters(), strict=True):
            assert torch.equal(own, given)
    training.close()


def test_an_evaluation_of_a_training_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epsilon 0.05, games cut at 5 minutes; the players are looked at, since an untrained network loses soon."""
    limits, epsilons = list[int](), list[float]()

    class Games(AtariGames):
        def __init__(self, *arguments: Any, max_frames_per_game: int) -> None:
            limits.append(max_frames_per_game)
            super().__init__(*arguments, max_frames_per_game=max_frames_per_game)

    def note(player: Any, *_: Any, **__: Any) -> None:
        epsilons.append(player.epsilon)

    monkeypatch.setattr("viewing.evaluator.AtariGames", Games)
    monkeypatch.setattr("viewing.evaluator.play_protocol", note)
    evaluator = Evaluator(2)
    evaluator.play(QNetwork("breakout", 4), 0, lambda _: True)
    evaluator.close()
    assert (limits, epsilons) == ([18_000], [0.05])
