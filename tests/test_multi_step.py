"""Transitions of several steps against a plain list of single ones."""

import pytest
from naive_play import NaivePlay, assert_a_memory_is_the_list

from relatives.multi_step import MultiStepMemory


@pytest.mark.parametrize(("num_envs", "n_steps"), [(3, 1), (3, 2), (1, 3), (3, 3), (3, 7)])
def test_samples_are_the_whole_transitions_of_a_plain_list(num_envs: int, n_steps: int) -> None:
    num_rows = 13 if n_steps == 1 else 24
    memory = MultiStepMemory(num_rows * num_envs, num_envs, n_steps=n_steps)
    assert_a_memory_is_the_list(memory, NaivePlay(num_envs, num_rows, seed=num_envs, n_steps=n_steps))
