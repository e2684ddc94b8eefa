"""An update against the Lua lines in NumPy, and a corridor, learned in seconds, that pays those who think ahead."""

import numpy as np
import torch
from test_optimizers import lua_step

from atari import Step
from model import QNetwork
from optimizers import RMSProp
from q_agent import QAgent
from replay_memory import ReplayMemory

CELLS = 4
DISCOUNT = 0.8
QUIT, WALK = 0, 1
QUIT_REWARD = 0.2  # at once; walking on to the end pays 1
UPDATES_PER_TARGET = 16
# What each action is worth in each cell, by hand: quitting always 0.2, walking 1 at the end and less before it.
TRUE_VALUES = np.array([[QUIT_REWARD, DISCOUNT ** (CELLS - 1 - cell)] for cell in range(CELLS)])


def picture(cell: int) -> np.ndarray:
    """A bright column where the walker stands."""
    frame = np.zeros((84, 84), np.uint8)
    frame[:, cell * 21 : (cell + 1) * 21] = 255
    return frame


def states_on_the_way() -> np.ndarray:
    """The state (4, 84, 84) of each cell as one meets it who walked there from the start, zeros before it."""
    frames = [np.zeros((84, 84), np.uint8)] * 3 + [picture(cell) for cell in range(CELLS)]
    return np.stack([np.stack(frames[cell : cell + 4]) for cell in range(CELLS)])


def play_corridor(memory: ReplayMemory) -> None:
    """Fill a memory with games of one who walks on with probability 0.7 and quits otherwise."""
    generator, cell = np.random.default_rng(0), 0
    memory.start(0, picture(0)[None])
    for _ in range(memory.num_rows + 50):
        action = WALK if generator.random() < 0.7 else QUIT
        over = action == QUIT or cell == CELLS - 1
        reward = QUIT_REWARD if action == QUIT else float(over)
        cell = 0 if over else cell + 1
        step = Step(picture(cell)[None], np.array([reward]), np.array([over]), np.array([over]), [])
        memory.append(np.array([action]), step)


def played(size: int) -> ReplayMemory:
    memory = ReplayMemory(size, 1, discount=DISCOUNT)
    play_corridor(memory)
    return memory


def new_agent(learning_rate: float) -> QAgent:
    torch.manual_seed(1)
    network = QNetwork("corridor", 2)
    optimizer = RMSProp(list(network.parameters()), learning_rate, decay=0.95, minimum=0.01)
    return QAgent(network, optimizer, minibatch_size=16)


def test_one_update_moves_the_weights_as_lua_would() -> None:
    memory = played(100)
    agent = new_agent(learning_rate=0.00025)
    before = agent.optimizer.weights.double().numpy().copy()
    agent.learn(memory.sample(16, np.random.default_rng(0)))
    d = -agent.optimizer.gradient.double().numpy()
    expected, g, v = lua_step(before, d, np.zeros_like(d), np.zeros_like(d), learning_rate=0.00025)
    np.testing.assert_allclose(agent.optimizer.weights.numpy(), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(agent.optimizer.gradient_mean.numpy(), -g, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(agent.optimizer.squared_gradient_mean.numpy(), v, rtol=1e-5, atol=1e-9)


def test_learns_to_pass_up_a_small_reward_for_a_later_large_one() -> None:
    memory, generator = played(500), np.random.default_rng(1)
    agent = new_agent(learning_rate=0.0005)
    losses: list[float | None] = []
    for _ in range(12):
        for _ in range(UPDATES_PER_TARGET // 2):
            agent.learn(memory.sample(2 * 16, generator))
        agent.copy_target()
        losses.append(agent.means.take().get("loss"))
    with torch.no_grad():
        values = agent.online_network(torch.from_numpy(states_on_the_way())).numpy()
    assert (values.argmax(axis=1) == WALK).all()
    np.testing.assert_allclose(values, TRUE_VALUES, atol=0.1)
    first, last = losses[0], losses[-1]
    assert first is not None
    assert last is not None
    assert last < 0.1 * first
