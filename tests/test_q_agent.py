"""The update against gradients written by hand, and how actions are chosen."""

import copy
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from atari import Step
from model import QNetwork
from optimizers import RMSProp
from q_agent import QAgent, draw_exploration
from replay_memory import Batch, ReplayMemory
from runtime.action_log import fingerprint
from runtime.cuda_graphs import capture_cuda_graphs
from runtime.devices import choose_device, set_up_torch

NUM_ENVS = 4
NUM_ACTIONS = 6
DISCOUNT = 0.99


def random_memory(device: str = "cpu", num_rows: int = 60) -> ReplayMemory:
    generator = np.random.default_rng(0)

    def frames() -> np.ndarray:
        return generator.integers(0, 256, (NUM_ENVS, 84, 84), dtype=np.uint8)

    memory = ReplayMemory(num_rows * NUM_ENVS, NUM_ENVS, device)
    memory.start(0, frames())
    for _ in range(num_rows + 20):
        actions = generator.integers(NUM_ACTIONS, size=NUM_ENVS)
        rewards = generator.integers(-1, 2, size=NUM_ENVS).astype(np.float32)
        terminals, game_starts = generator.random(NUM_ENVS) < 0.2, generator.random(NUM_ENVS) < 0.05
        memory.append(actions, Step(frames(), rewards, terminals, game_starts, []))
    return memory


def new_agent(device: str = "cpu", seed: int = 0) -> QAgent:
    """An agent whose target network is not its online network."""
    torch.manual_seed(seed)
    network = QNetwork("pong", NUM_ACTIONS).to(device)
    optimizer = RMSProp(list(network.parameters()), learning_rate=0.00025, decay=0.95, minimum=0.01)
    agent = QAgent(network, optimizer, minibatch_size=32)
    agent.optimizer.weights.copy_(agent.optimizer.weights * 1.2)
    return agent


def draw(memory: ReplayMemory, count: int, seed: int = 0) -> Batch:
    """Transitions with rewards up to 3, so that some errors are clipped and others are not."""
    transitions = memory.sample(count, np.random.default_rng(seed))
    rewards = np.random.default_rng(seed).uniform(-3, 3, count).astype(np.float32)
    transitions.rewards = torch.from_numpy(rewards).to(transitions.states.device)
    return transitions


def part(transitions: Batch, begin: int, end: int) -> Batch:
    arrays: dict[str, Any] = {name: a if a is None else a[begin:end] for name, a in vars(transitions).items()}
    return Batch(**arrays)


def states_and_next_states(transitions: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return transitions.states.contiguous(), transitions.next_states.contiguous()


def td_errors(agent: QAgent, transitions: Batch) -> np.ndarray:
    """r + discount * max Q of the target network (0 at a terminal) - Q of the online network, float64."""
    states, next_states = states_and_next_states(transitions)
    with torch.no_grad():
        best_next = agent.target_network(next_states).max(dim=1).values.double().numpy()
        q_values = agent.online_network(states).double().numpy()
    targets = transitions.rewards.numpy() + transitions.discounts.numpy() * best_next
    return np.asarray(targets - q_values[np.arange(len(targets)), transitions.actions])


def test_gradient_is_the_clipped_error_summed_over_the_minibatch() -> None:
    memory = random_memory()
    agent = new_agent()
    agent.learn(draw(memory, 32, seed=9))  # whose gradient must not linger
    transitions = draw(memory, 32)
    errors = td_errors(agent, transitions)
    assert 5 < (np.abs(errors) > 1).sum() < 27
    clipped = np.clip(errors, -1, 1)
    states, _ = states_and_next_states(transitions)

    probe = copy.deepcopy(agent.online_network)
    q_taken = probe(states).gather(1, transitions.actions[:, None]).squeeze(1)
    gradients = torch.autograd.grad(q_taken, list(probe.parameters()), torch.from_numpy(-clipped).float())
    with torch.no_grad():
        features = probe.features(states).double().numpy()

    agent.learn(transitions)
    for (name, parameter), expected in zip(agent.online_network.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4, msg=name)
    # The last layer once more, by hand: each action's row has the errors of the transitions that took it.
    rows = np.zeros((NUM_ACTIONS, 512))
    for action, error, feature in zip(transitions.actions, clipped, features, strict=True):
        rows[action] -= error * feature
    weight_gradient = agent.online_network.values.weight.grad
    assert weight_gradient is not None
    np.testing.assert_allclose(weight_gradient.numpy(), rows, rtol=1e-3, atol=1e-4)


def test_several_minibatches_at_once_are_updates_one_after_another() -> None:
    memory = random_memory()
    transitions = draw(memory, 96)
    together, apart, swapped = (new_agent() for _ in range(3))
    together.learn(transitions)
    for begin in (0, 32, 64):
        apart.learn(part(transitions, begin, begin + 32))
    for begin in (32, 0, 64):
        swapped.learn(part(transitions, begin, begin + 32))
    difference = (together.optimizer.weights - apart.optimizer.weights).norm()
    order = (together.optimizer.weights - swapped.optimizer.weights).norm()
    assert difference < 0.01 * order
    assert together.state_dict()["updates_since_loss"] == apart.state_dict()["updates_since_loss"] == 3
    assert together.means.take().get("loss") == pytest.approx(apart.means.take().get("loss"), rel=1e-4)


def test_mean_loss_is_the_huber_loss_per_transition_since_the_last_call() -> None:
    memory = random_memory()
    agent = new_agent()
    assert agent.means.take().get("loss") is None
    losses = []
    for seed in range(3):
        transitions = draw(memory, 32, seed)
        errors = np.abs(td_errors(agent, transitions))
        losses.append(np.where(errors < 1, errors**2 / 2, errors - 0.5).mean())
        agent.learn(transitions)
    assert agent.means.take().get("loss") == pytest.approx(np.mean(losses), rel=1e-4)
    assert agent.means.take().get("loss") is None


def test_max_q() -> None:
    agent = new_agent()
    states, _ = states_and_next_states(draw(random_memory(), 40))
    with torch.no_grad():
        expected = [agent.online_network(state[None]).max().item() for state in states]
    assert agent.max_q(states).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert agent.max_q(states).mean().item() == pytest.approx(np.mean(expected), rel=1e-4)


def greedy_actions(agent: QAgent, memory: ReplayMemory) -> np.ndarray:
    with torch.no_grad():
        q_values: torch.Tensor = agent.online_network(memory.latest_states())
    return q_values.numpy().argmax(axis=1)


def act_often(agent: QAgent, memory: ReplayMemory, epsilon: list[float], times: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.stack([agent.act(memory.latest_states(), np.array(epsilon), generator) for _ in range(times)])


def test_epsilon_zero_is_greedy_in_the_newest_states() -> None:
    memory = random_memory()
    agent = new_agent()
    chosen = []
    for seed in range(5):  # of one network's random states the greedy actions hardly differ
        agent.load_state_dict({**agent.state_dict(), "online": new_agent(seed=seed).state_dict()["online"]})
        with torch.no_grad():
            agent.online_network.values.weight.sub_(agent.online_network.values.weight.mean(1, keepdim=True)).mul_(50)
        actions = agent.act(memory.latest_states(), np.zeros(NUM_ENVS), np.random.default_rng(seed))
        assert actions.dtype == np.int64
        assert np.array_equal(actions, greedy_actions(agent, memory))
        chosen += actions.tolist()
    assert len(set(chosen)) > 2


def test_epsilon_one_is_uniform() -> None:
    actions = act_often(new_agent(), random_memory(), [1.0] * NUM_ENVS, 1500)
    counts = np.bincount(actions.flatten(), minlength=NUM_ACTIONS)
    assert counts.shape == (NUM_ACTIONS,)
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_each_environment_has_its_own_epsilon() -> None:
    memory = random_memory()
    agent = new_agent()
    actions = act_often(agent, memory, [0.0, 1.0, 0.0, 0.5], 240)
    greedy = greedy_actions(agent, memory)
    followed = (actions == greedy).mean(axis=0)
    assert (followed[0], followed[2]) == (1, 1)
    assert abs(followed[1] - 1 / 6) < 0.08
    assert abs(followed[3] - (0.5 + 0.5 / 6)) < 0.1


def test_exploration_draws_the_same_amount_whatever_epsilon() -> None:
    states = []
    for epsilon in (0.0, 0.3, 1.0):
        generator = np.random.default_rng(5)
        explore, actions = draw_exploration(64, 6, epsilon, generator)
        assert explore.shape == actions.shape == (64,)
        assert [explore.dtype, actions.dtype] == [np.dtype(np.bool_), np.dtype(np.int64)]
        assert epsilon not in (0, 1) or (explore == bool(epsilon)).all()
        states.append(generator.bit_generator.state)
    assert states[0] == states[1] == states[2]


def assert_same_state(one: QAgent, other: QAgent) -> None:
    expected, state = one.state_dict(), other.state_dict()
    assert expected.keys() == state.keys()
    for name, value in expected.items():
        same = torch.equal(value, state[name]) if isinstance(value, torch.Tensor) else value == state[name]
        assert same, name


def test_loaded_state_goes_on_bit_for_bit() -> None:
    memory = random_memory()
    agent, loaded = new_agent(), new_agent(seed=1)
    agent.learn(draw(memory, 64))
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    kept = agent.state_dict()
    agent.learn(draw(memory, 32, seed=1))  # what was saved must not move with the agent
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    agent.load_state_dict(kept)
    for seed in (2, 3):
        for each in (agent, loaded):
            each.learn(draw(memory, 32, seed))
            if seed == 2:
                each.copy_target()
    assert_same_state(agent, loaded)
    assert agent.means.take().get("loss") == loaded.means.take().get("loss")
    states = memory.latest_states()
    assert torch.equal(agent.online_network(states), loaded.online_network(states))


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_graph_learns_what_its_function_learns_without_one(deterministic: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no cuda device here")
    memory, agents = random_memory("cuda"), [new_agent("cuda"), new_agent("cuda")]
    capture_cuda_graphs(agents[0])
    exactly = {"rtol": 0, "atol": 0} if deterministic else {"rtol": 1e-5, "atol": 1e-5}
    set_up_torch(deterministic)
    try:
        for seed in range(6):
            drawn = draw(memory, 32 * (1 + seed % 2), seed)
            for agent in agents:
                agent.learn(replace(drawn))
            first, second = (agent.state_dict() for agent in agents)
            for name in ("online", "gradient_mean", "squared_gradient_mean"):
                torch.testing.assert_close(first[name], second[name], msg=name, **exactly)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_accelerator_does_what_runs_eagerly_on_a_cpu(device: str) -> None:
    if not {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]:
        pytest.skip(f"there is no {device} device here")
    choose_device(device)  # as in training: no tf32
    # A graph's warm-up runs real updates: were they not undone, nothing here would agree.
    memories = random_memory(), random_memory(device)
    agents = [new_agent("cpu"), new_agent(device)]
    if device == "cuda":
        capture_cuda_graphs(agents[1])
    for seed in range(6):
        count = 32 * (1 + seed % 2)  # two shapes: two graphs
        for memory, agent in zip(memories, agents, strict=True):
            agent.learn(draw(memory, count, seed))
            if seed == 3:
                agent.copy_target()
        on_cpu, on_device = (agent.state_dict() for agent in agents)
        for name in ("online", "target", "gradient_mean", "squared_gradient_mean"):
            torch.testing.assert_close(on_device[name], on_cpu[name], rtol=1e-2, atol=1e-4, msg=name)
        assert on_device["updates_since_loss"] == on_cpu["updates_since_loss"]
    assert agents[1].means.take().get("loss") == pytest.approx(agents[0].means.take().get("loss"), rel=1e-3)
    expected, actions = (
        act_often(agent, memory, [0.0, 0.5, 1.0, 0.0], 20) for memory, agent in zip(memories, agents, strict=True)
    )
    assert np.array_equal(actions, expected)
    assert fingerprint(memories[0]) == fingerprint(memories[1])
