"""The optimizers against NumPy: RMSProp is the Lua lines, Adam that of its paper."""

import numpy as np
import pytest
import torch

from model import QNetwork
from optimizers import Adam, RMSProp, move_into_one_buffer


def lua_step(
    w: np.ndarray, d: np.ndarray, g: np.ndarray, v: np.ndarray, learning_rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One update of qLearnMinibatch in float64: d points where the value rises, as there."""
    g = 0.95 * g + 0.05 * d
    v = 0.95 * v + 0.05 * d * d
    return w + learning_rate * d / np.sqrt(v - g * g + 0.01), g, v


def test_rmsprop_is_the_lua_one_in_numpy() -> None:
    generator = np.random.default_rng(0)
    parameters = [
        torch.nn.Parameter(torch.randn(3, 4, 5, 5).contiguous(memory_format=torch.channels_last)),
        torch.nn.Parameter(torch.randn(6)),
    ]
    expected = [parameter.detach().double().numpy().copy() for parameter in parameters]
    means = [(np.zeros(p.shape), np.zeros(p.shape)) for p in parameters]
    optimizer = RMSProp(parameters, learning_rate=0.01, decay=0.95, minimum=0.01)
    for step in range(40):
        optimizer.gradient.zero_()
        for i, parameter in enumerate(parameters):
            gradient = generator.normal(0.01 * step, 0.3, parameter.shape)
            assert parameter.grad is not None
            parameter.grad.add_(torch.from_numpy(gradient))
            expected[i], *mean = lua_step(expected[i], -gradient, *means[i], learning_rate=0.01)
            means[i] = (mean[0], mean[1])
        optimizer.step()
        for parameter, value in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_adam_is_the_one_of_its_paper_and_counts_the_heads_updates_apart(epsilon: float) -> None:
    generator = np.random.default_rng(0)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (7, 5)]
    optimizer = Adam(parameters, 0.01, epsilon=epsilon, head_size=5)
    weights, first, second, updates = np.zeros(12), np.zeros(12), np.zeros(12), np.zeros(12)
    for number in range(30):
        if number == 20:
            optimizer.gradient_mean[7:] = optimizer.squared_gradient_mean[7:] = optimizer.updates[1] = 0
            first[7:] = second[7:] = updates[7:] = 0
        d = generator.normal(0.1 * number, 1.0, 12)
        optimizer.gradient.copy_(torch.from_numpy(d))
        rate = 0.01 if number < 10 else 0.002
        if number >= 10:
            optimizer.set_learning_rate(rate)
        optimizer.step()
        updates += 1
        first, second = 0.9 * first + 0.1 * d, 0.999 * second + 0.001 * d * d
        weights -= rate * first / (1 - 0.9**updates) / (np.sqrt(second / (1 - 0.999**updates)) + epsilon)
        np.testing.assert_allclose(optimizer.weights.numpy(), weights, atol=1e-6)
    assert torch.equal(torch.cat([parameter.detach() for parameter in parameters]), optimizer.weights)


def test_flat_views_keep_values_and_follow_the_buffer() -> None:
    net = QNetwork("breakout", 4)
    states = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    q_values = net(states).detach()
    flat = move_into_one_buffer(list(net.parameters()))
    assert flat.shape == (1_686_180,)
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name])
        assert value.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    assert torch.equal(net(states), q_values)
    flat.mul_(2)
    for name, value in net.named_parameters():
        assert torch.equal(value, 2 * before[name])
