"""Double Q-learning (van Hasselt et al. 2016): the online network chooses the action that the target network values."""

from collections.abc import Callable

from torch import Tensor

from q_agent import QAgent
from replay_memory import Batch


def chosen_by_online(agent: QAgent) -> Callable[[Batch], Tensor]:
    """The rule that values the next states (count,) so; of distributions, those of the actions (count, atoms)."""

    def next_values(batch: Batch) -> Tensor:
        assert batch.next_outputs is not None
        return of_actions(batch.next_outputs, agent.online_network(batch.next_states).argmax(1))

    return next_values


def of_actions(outputs: Tensor, actions: Tensor) -> Tensor:
    """Of outputs (count, num_actions) or (count, num_actions, atoms), those for actions (count,)."""
    indices = actions.view(-1, *[1] * (outputs.dim() - 1)).expand(-1, 1, *outputs.shape[2:])
    return outputs.gather(1, indices).squeeze(1)
