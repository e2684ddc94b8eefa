"""Dueling networks (Wang et al. 2016): one hidden layer for a state's value, one for what each action adds to it."""

from torch import Tensor, nn

from model import QNetwork


class Dueling(QNetwork):
    """Q = V + A - mean A; the state's hidden layer comes first in `features`."""

    def add_head(self, num_features: int) -> None:
        self.hidden = nn.Linear(num_features, 2 * self.hidden_units)
        self.values = nn.Linear(self.hidden_units, self.num_outputs)
        self.state_value = nn.Linear(self.hidden_units, self.num_outputs // self.num_actions)

    def head(self, features: Tensor) -> Tensor:
        of_state, of_actions = features.chunk(2, dim=1)
        state_values, advantages = self.shaped(self.state_value(of_state)), self.shaped(self.values(of_actions))
        return state_values + advantages - advantages.mean(1, keepdim=True)

    def shaped(self, outputs: Tensor) -> Tensor:
        """Outputs by action, (batch, 1 or num_actions)."""
        return outputs
