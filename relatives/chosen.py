"""What the flags choose: the paper's memory, network, optimizer and rules, or relatives of them; asked at the start."""

import torch

from config import Hyperparameters
from model import QNetwork
from optimizers import Adam, Optimizer, RMSProp
from q_agent import QAgent
from relatives.bfloat16 import halve_bits
from relatives.distributional import Distributional, DistributionalAgent
from relatives.double import chosen_by_online
from relatives.head_reset import head_of, reset_head
from relatives.multi_step import MultiStepMemory
from relatives.networks import build_network
from relatives.no_target_network import leave_out_target_network
from relatives.prioritized import PrioritizedMemory, weighted_sum
from replay_memory import ReplayMemory
from runtime.networks import architecture_of
from training import HEAD_SEEDS, Training, multiples_crossed
from wrappers import AtariGames


def memory_for(parameters: Hyperparameters, device: torch.device) -> ReplayMemory:
    """The empty memory that is drawn from as the flags say."""
    shape = parameters.replay_size, parameters.num_envs, device
    discount, n_steps = parameters.discount, parameters.n_steps
    if parameters.prioritized:
        exponent, minibatch_size = parameters.priority_exponent, parameters.minibatch_size
        return PrioritizedMemory(
            *shape, discount=discount, n_steps=n_steps, minibatch_size=minibatch_size, priority_exponent=exponent
        )
    if n_steps > 1:
        return MultiStepMemory(*shape, discount=discount, n_steps=n_steps)
    return ReplayMemory(*shape, discount=discount)


def network_for(parameters: Hyperparameters, games: AtariGames) -> QNetwork:
    """The network with first weights."""
    shape = games.num_actions, parameters.architecture, parameters.rules
    return build_network(games.rom, *shape, initial_weights=parameters.initial_weights)


def optimizer_for(parameters: Hyperparameters, network: QNetwork) -> Optimizer:
    """The optimizer of the network's weights where they lie."""
    weights, rate = [*network.parameters()], parameters.learning_rate
    if parameters.optimizer == "adam":
        head_size = sum(parameter.numel() for parameter in head_of(network))
        return Adam(weights, rate, epsilon=parameters.adam_epsilon, head_size=head_size)
    return RMSProp(weights, rate, decay=parameters.rmsprop_decay, minimum=parameters.min_squared_gradient)


def agent_for(parameters: Hyperparameters, network: QNetwork, optimizer: Optimizer) -> QAgent:
    """The agent that learns by the chosen rules."""
    agent: QAgent
    if isinstance(network, Distributional):
        agent = DistributionalAgent(network, optimizer, minibatch_size=parameters.minibatch_size)
    else:
        agent = QAgent(network, optimizer, minibatch_size=parameters.minibatch_size)
    if parameters.double:
        agent.next_values = chosen_by_online(agent)
    if not parameters.target_network:
        leave_out_target_network(agent)
    if parameters.precision == "bfloat16":
        halve_bits(agent)
    return agent


def attach_relatives(training: Training) -> None:
    """Let schedules, fresh heads and priorities take part in a training whose flags ask for them."""
    parameters, memory, agent = training.parameters, training.memory, training.agent
    if parameters.learning_rate_end is not None:
        training.schedules.append(lambda steps: agent.optimizer.set_learning_rate(parameters.learning_rate_at(steps)))
    if isinstance(memory, MultiStepMemory) and parameters.n_steps_end is not None:
        _let_n_steps_fall(training, memory)
    if isinstance(memory, PrioritizedMemory):
        _learn_by_priority(training, memory)
    if parameters.reset_head_every:
        training.events.append(lambda before, after: _reset_head_when_due(training, before, after))


def _let_n_steps_fall(training: Training, memory: MultiStepMemory) -> None:
    def schedule(agent_steps: int) -> None:
        memory.n_steps = training.parameters.n_steps_at(agent_steps)

    training.schedules.append(schedule)


def _learn_by_priority(training: Training, memory: PrioritizedMemory) -> None:
    def schedule(agent_steps: int) -> None:
        memory.importance_exponent = training.parameters.importance_exponent_at(agent_steps)

    training.schedules.append(schedule)
    training.kept_arrays["priorities"] = memory.probabilities
    training.agent.sum_losses = weighted_sum
    training.agent.learn = memory.learning_by(training.agent.learn)  # type: ignore[method-assign, assignment]


def _reset_head_when_due(training: Training, before: int, after: int) -> None:
    if multiples_crossed(before, after, training.parameters.reset_head_every):
        network, weights = training.agent.online_network, training.parameters.initial_weights
        layers = network.game, network.num_actions, architecture_of(network)
        seed = training.seed(HEAD_SEEDS, before)
        reset_head(training.agent, lambda: build_network(*layers, initial_weights=weights), seed)
