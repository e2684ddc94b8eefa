"""The distributional relatives against loops over atoms and pairs, and where their networks go."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_relatives import MINIBATCH, Rule, learn, new_agent, played
from torch import Tensor

from q_agent import QAgent
from relatives.distributional import ATOMS, Categorical, Distributional, Quantiles
from relatives.networks import build_network
from runtime.architecture import Architecture
from runtime.checkpoint import save_state_dict
from runtime.networks import load_network

KINDS = ("c51", "qr")
COUNT = 6


def drawn(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Outputs, rewards, discounts and next outputs; rewards that reach beyond the support, a terminal among them."""
    generator = np.random.default_rng(seed)
    outputs, next_outputs = (torch.from_numpy(3 * generator.normal(size=(COUNT, ATOMS))) for _ in range(2))
    rewards = torch.tensor([0.0, 1.0, -1.0, 9.7, -25.0, 0.33]).double()
    discounts = torch.tensor([0.99, 0.0, 0.97, 0.99, 0.5, 1.0]).double()
    return outputs, rewards, discounts, next_outputs


def test_c51_projects_as_a_loop_over_the_atoms_does() -> None:
    outputs, rewards, discounts, next_outputs = drawn()
    support = np.linspace(-10, 10, ATOMS)
    losses = Categorical("breakout", 2).double().losses(outputs, rewards, discounts, next_outputs)
    for i in range(COUNT):
        exponentials = np.exp(next_outputs[i].numpy())
        projected = np.zeros(ATOMS)
        for probability, atom in zip(exponentials / exponentials.sum(), support, strict=True):
            place = (np.clip(rewards[i].item() + discounts[i].item() * atom, -10, 10) + 10) / 0.4
            below = min(int(place), ATOMS - 2)
            projected[below] += probability * (below + 1 - place)
            projected[below + 1] += probability * (place - below)
        predicted = np.exp(outputs[i].numpy()) / np.exp(outputs[i].numpy()).sum()
        assert losses[i].item() == pytest.approx(-(projected * np.log(predicted)).sum(), rel=1e-5)


def test_quantiles_lose_as_a_loop_over_the_pairs_does() -> None:
    outputs, rewards, discounts, next_outputs = drawn()
    losses = Quantiles("breakout", 2).double().losses(outputs, rewards, discounts, next_outputs)
    for i in range(COUNT):
        expected = 0.0
        for number, predicted in enumerate(outputs[i].tolist()):
            level = (number + 0.5) / ATOMS
            for next_quantile in next_outputs[i].tolist():
                error = rewards[i].item() + discounts[i].item() * next_quantile - predicted
                huber = error**2 / 2 if abs(error) <= 1 else abs(error) - 0.5
                expected += abs(level - (error < 0)) * huber / ATOMS
        assert losses[i].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_q_values_are_the_means_of_the_distributions(kind: str, dueling: bool) -> None:
    network = build_network("breakout", 4, Architecture("nips2013", dueling, distributional=kind))
    assert isinstance(network, Distributional)
    states = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        outputs, q_values = network.outputs(states).double().numpy(), network(states).numpy()
        features = network.features(states)
    assert outputs.shape == (3, 4, ATOMS)
    if kind == "c51":
        probabilities = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
        expected = (probabilities * np.linspace(-10, 10, ATOMS)).sum(-1)
    else:
        expected = outputs.mean(-1)
    np.testing.assert_allclose(q_values, expected, atol=1e-5)
    if dueling:  # per atom, the mean of the actions' advantages is taken off
        of_state = network.get_submodule("state_value")(features[:, :256]).detach().numpy()
        np.testing.assert_allclose(outputs.mean(1), of_state, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_differences_of_means_and_double_chooses_by_the_online_network(kind: str) -> None:
    architecture = Architecture("nips2013", distributional=kind)
    batch = played(300, Rule(n_steps=2)).sample(MINIBATCH, np.random.default_rng(3))
    for double in (False, True):
        agent = new_agent(Rule(double=double), architecture)
        with torch.no_grad():
            agent.target_network.values.bias.copy_(agent.online_network.values.bias.flip(0))
            target, online = agent.target_network(batch.next_states), agent.online_network(batch.next_states)
            q_taken = agent.online_network(batch.states)[torch.arange(MINIBATCH), batch.actions]
        best = target[torch.arange(MINIBATCH), (online if double else target).argmax(1)]
        errors = agent.learn(batch)
        expected = batch.rewards + batch.discounts * best - q_taken
        np.testing.assert_allclose(errors, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_16_bits_keeps_the_support(tmp_path: Path, kind: str) -> None:
    network = build_network("breakout", 4, Architecture("nips2013", distributional=kind))
    described = {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, torch.Tensor)}
    assert described.keys() == dict(network.named_parameters()).keys()
    halved = {name: tensor.half() for name, tensor in described.items()}
    save_state_dict(network.state_dict() | halved, tmp_path / "model.pt")
    loaded = load_network(tmp_path / "model.pt")
    for own, other in zip(network.buffers(), loaded.buffers(), strict=True):
        assert torch.equal(own, other)
    states = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(loaded(states), network(states), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_target_network_the_next_distribution_is_the_online_networks(kind: str) -> None:
    architecture, memory = Architecture("nips2013", distributional=kind), played(300)
    agents = [new_agent(Rule(target_network=False), architecture), new_agent(Rule(), architecture)]
    learn(agents[0], memory, 3, copy_every=0)
    learn(agents[1], memory, 3, copy_every=1)
    torch.testing.assert_close(agents[0].optimizer.weights, agents[1].optimizer.weights)


def q_values_of_acting(agent: QAgent, states: Tensor) -> Tensor:
    """The Q-values by which an agent chooses its actions."""
    seen: list[Tensor] = []
    hook = agent.online_network.register_forward_hook(lambda _, __, output: seen.append(output))
    actions = agent.greedy_actions(states)
    hook.remove()
    (q_values,) = seen
    assert torch.equal(actions, q_values.argmax(1))
    return q_values


def test_bfloat16_rounds_what_is_multiplied_and_nothing_else() -> None:
    float32, bfloat16 = (new_agent(rule, Architecture("nips2013")) for rule in (Rule(), Rule(precision="bfloat16")))
    batch = played(300).sample(MINIBATCH, np.random.default_rng(0))
    exact, rounded = (q_values_of_acting(agent, batch.states) for agent in (float32, bfloat16))
    assert rounded.dtype == torch.float32
    assert 1e-5 < (rounded - exact).abs().max() < 0.02
    with torch.no_grad():  # evaluations, figures and films call the network itself
        assert torch.equal(bfloat16.max_q(batch.states), float32.max_q(batch.states))
    for agent in (float32, bfloat16):
        agent.learn(batch)
        assert all(tensor.dtype == torch.float32 for tensor in agent.tensors().values())
    gradients = [agent.optimizer.gradient for agent in (float32, bfloat16)]
    assert 0 < (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 0.05


def test_in_bfloat16_the_second_update_of_a_step_sees_the_firsts_weights() -> None:
    batch = played(300).sample(2 * MINIBATCH, np.random.default_rng(0))
    together, apart = (new_agent(Rule(precision="bfloat16"), Architecture("nips2013")) for _ in range(2))
    together.learn(batch)
    for begin in (0, MINIBATCH):
        part = replace(batch, next_outputs=None)
        for name in ("states", "actions", "rewards", "discounts", "next_states"):
            setattr(part, name, getattr(batch, name)[begin : begin + MINIBATCH])
        apart.learn(part)
    torch.testing.assert_close(together.optimizer.weights, apart.optimizer.weights, rtol=0, atol=1e-6)
