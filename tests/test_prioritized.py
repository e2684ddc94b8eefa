"""Prioritized replay: what is drawn, how often, and what it then counts."""

import numpy as np
import torch
from naive_play import NaivePlay, assert_equals_the_list, frame_numbers

from relatives.prioritized import PrioritizedMemory
from replay_memory import Batch


def prioritized_play(exponent: float) -> tuple[NaivePlay, PrioritizedMemory]:
    """Random play past the ring's end, with priorities set on the way and a break of the games."""
    play, memory = NaivePlay(3, 40, seed=4), PrioritizedMemory(120, 3, minibatch_size=24, priority_exponent=exponent)
    play.start(memory)
    generator = np.random.default_rng(1)
    for step in range(90):
        play.step()
        if step == 70:
            play.start()
        if step > 5:
            memory.sample(24, generator)
            memory.set_priorities(0.1 + generator.random(24).astype(np.float32) ** 2)
    return play, memory


def test_transitions_are_drawn_in_proportion_to_their_priority() -> None:
    """Against a list of the whole transitions with their priorities; weights as Schaul et al. 2016, 3.4, have them."""
    play, memory = prioritized_play(0.6)
    whole = sorted(play.whole())
    draws = 100 * len(whole)
    memory.importance_exponent = 0.4
    sampled = memory.sample(draws, np.random.default_rng(0))
    assert_equals_the_list(sampled, play.whole())
    numbers = frame_numbers(sampled.states)[:, 3]
    own = (memory.probabilities ** (1 / 0.6)).flatten()[memory._drawn]
    priorities = dict(zip(numbers.tolist(), own.tolist(), strict=True))
    assert sorted(priorities) == whole
    assert len(set(priorities.values())) > 30
    assert max(priorities.values()) == 1
    total = sum(priority**0.6 for priority in priorities.values())
    expected = np.array([draws * priorities[number] ** 0.6 / total for number in whole])
    counts = np.array([np.sum(numbers == number) for number in whole])
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), len(whole) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5
    assert sampled.weights is not None
    assert (sampled.weights.shape, sampled.weights.dtype) == ((draws,), torch.float32)
    for begin in range(0, draws, 24):
        minibatch = slice(begin, begin + 24)
        naive = [(len(whole) * priorities[number] ** 0.6 / total) ** -0.4 for number in numbers[minibatch].tolist()]
        np.testing.assert_allclose(sampled.weights[minibatch], np.array(naive) / max(naive), rtol=1e-5)


def test_priorities_are_those_of_the_last_error_and_1_for_what_is_new() -> None:
    play, memory = NaivePlay(2, 10, seed=0, ends=0.0), PrioritizedMemory(20, 2, priority_exponent=1.0)
    play.start(memory)
    for _ in range(4):
        play.step()
    assert np.array_equal(memory.probabilities, np.ones((10, 2), np.float32))
    memory.sample(3, np.random.default_rng(0))
    memory._drawn[:] = 1, 4, 1  # one of them twice: the later error counts
    memory.set_priorities(np.array([0.3, -5.0, -0.2], np.float32))
    expected = np.ones(20, np.float32)
    expected[1] = np.float32(0.2) + np.float32(2e-6)  # GamePlay's constants
    assert np.array_equal(memory.probabilities.flatten(), expected)
    memory.set_priorities(np.zeros(3, np.float32))
    assert memory.probabilities.flatten()[4] == np.float32(2e-6)
    for _ in range(7):
        play.step()  # over what stood there
    assert np.array_equal(memory.probabilities[:2], np.ones((2, 2), np.float32))


def test_the_errors_of_what_was_learned_become_its_priorities() -> None:
    """Those of the last sample, once the agent has learned from it; what it learned from and gave is handed on."""
    _, memory = prioritized_play(0.5)
    sampled = memory.sample(24, np.random.default_rng(0))
    before, errors, learned = memory.probabilities.copy(), torch.linspace(-1.5, 0.9, 24), list[Batch]()

    def learn(batch: Batch) -> torch.Tensor:
        assert np.array_equal(memory.probabilities, before)
        learned.append(batch)
        return errors

    assert memory.learning_by(learn)(sampled) is errors
    assert len(learned) == 1
    assert learned[0] is sampled
    last = dict(zip(memory._drawn.tolist(), errors.tolist(), strict=True))
    expected = before.flatten()
    for place, error in last.items():
        expected[place] = min(abs(error) + 2e-6, 1) ** 0.5
    np.testing.assert_allclose(memory.probabilities.flatten(), expected, rtol=1e-6)
