"""Targets from the network that learns, as each update finds it (Mnih et al. 2013, Algorithm 1)."""

from torch import Tensor

from q_agent import QAgent
from replay_memory import Batch


def leave_out_target_network(agent: QAgent) -> None:
    """Let the online network stand in for the target network, asked anew in each update."""
    rule, of_online = agent.next_values, agent.online_outputs

    def next_values(batch: Batch) -> Tensor:
        batch.next_outputs = of_online(batch.next_states)
        return rule(batch)

    agent.next_values = next_values
    agent.target_pass = lambda _: None
