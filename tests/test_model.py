"""The Q-network against an explicit computation, and its file against everything a file can be instead."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import QNetwork
from optimizers import move_into_one_buffer
from runtime.checkpoint import save_state_dict
from runtime.exits import UsageError
from runtime.networks import load_network

FAN_IN = {"conv1": 4 * 8 * 8, "conv2": 32 * 4 * 4, "conv3": 64 * 3 * 3, "hidden": 7 * 7 * 64, "values": 512}


def network(num_actions: int = 4, seed: int = 0) -> QNetwork:
    torch.manual_seed(seed)
    return QNetwork("breakout", num_actions)


def random_states(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 4, 84, 84), dtype=np.uint8))


@pytest.mark.parametrize("num_actions", [4, 18])
def test_parameters_and_shapes(num_actions: int) -> None:
    net = network(num_actions)
    assert sum(p.numel() for p in net.parameters()) == 1_686_180 + (num_actions - 4) * 513
    assert net(random_states(3)).shape == (3, num_actions)
    assert net(random_states(3)).dtype == torch.float32
    assert net.features(random_states(3)).shape == (3, 512)


def test_every_layer_begins_uniform_within_its_fan_in() -> None:
    values = dict(network(18).named_parameters())
    assert set(values) == {f"{layer}.{part}" for layer in FAN_IN for part in ("weight", "bias")}
    for layer, fan_in in FAN_IN.items():
        scaled = torch.cat([values[f"{layer}.{part}"].detach().flatten() for part in ("weight", "bias")]) * fan_in**0.5
        assert scaled.abs().max() <= 1
        assert values[f"{layer}.bias"].abs().max() > 0.5 * fan_in**-0.5
        histogram = torch.histc(scaled, bins=10, min=-1, max=1) / scaled.numel()
        assert (histogram - 0.1).abs().max() < 5 * (0.09 / scaled.numel()) ** 0.5, layer


def explicit_q_values(state_dict: dict[str, Any], states: torch.Tensor) -> torch.Tensor:
    """The network of the paper in double precision, its convolutions as sums over unfolded patches."""
    maps = states.double() / 255
    for layer, size, stride, padding in (("conv1", 8, 4, 1), ("conv2", 4, 2, 0), ("conv3", 3, 1, 0)):
        weight, bias = state_dict[f"{layer}.weight"].double(), state_dict[f"{layer}.bias"].double()
        patches = F.unfold(maps, size, padding=padding, stride=stride)  # (batch, channels * size * size, places)
        side = int(patches.shape[2] ** 0.5)
        maps = (weight.flatten(1) @ patches + bias[:, None]).clamp(min=0).unflatten(2, (side, side))
    flat = torch.stack([torch.cat([maps[n, :, y, x] for y in range(7) for x in range(7)]) for n in range(len(states))])
    hidden = (flat @ state_dict["hidden.weight"].double().T + state_dict["hidden.bias"].double()).clamp(min=0)
    return hidden @ state_dict["values.weight"].double().T + state_dict["values.bias"].double()


def test_forward_is_the_papers_network_flattened_by_height_width_channel() -> None:
    net, states = network(), random_states(3)
    expected = explicit_q_values(net.state_dict(), states)
    assert expected.std() > 0.01
    torch.testing.assert_close(net(states).double(), expected, rtol=1e-4, atol=1e-5)


def test_layout_of_the_states_does_not_matter_and_they_stay_as_they_are() -> None:
    net, states = network(), random_states(2)
    before = states.clone()
    windows = torch.cat([states, states[:, :1]], dim=1)[:, :4]  # a view with gaps, as the agent passes it
    assert torch.equal(net(states), net(windows))
    assert torch.equal(states, before)


def test_file_round_trip(tmp_path: Path) -> None:
    net, path = network(), tmp_path / "model.pt"
    save_state_dict(net.state_dict(), path)
    loaded = load_network(path)
    assert (loaded.game, loaded.num_actions, loaded.training) == ("breakout", 4, False)
    assert loaded.state_dict().keys() == net.state_dict().keys()
    for name, value in net.named_parameters():
        assert torch.equal(loaded.get_parameter(name), value)
    assert torch.equal(loaded(random_states(2)), net(random_states(2)))
    by_hand = QNetwork("breakout", 4)  # what any PyTorch program would do
    by_hand.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(by_hand.get_parameter("conv1.weight"), net.get_parameter("conv1.weight"))


def test_saved_tensors_are_dense_and_own_their_storage(tmp_path: Path) -> None:
    net, path = network(), tmp_path / "model.pt"
    move_into_one_buffer(list(net.parameters()))  # as in a training run: every parameter a view of one buffer
    save_state_dict(net.state_dict(), path)
    assert 6_744_720 < path.stat().st_size < 6_760_000  # 4 bytes per parameter, and the archive's frame
    saved = torch.load(path, weights_only=True)
    tensors = [value for value in saved.values() if isinstance(value, torch.Tensor)]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 10
    for tensor in tensors:
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()


def write_missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def write_truncated(path: Path) -> None:
    save_state_dict(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def write_corrupt(path: Path) -> None:
    save_state_dict(network().state_dict(), path)
    content = bytearray(path.read_bytes())
    content[-200:-100] = bytes(100)
    path.write_bytes(content)


def write_name_that_is_no_text(path: Path) -> None:
    state_dict: dict[Any, Any] = dict(network().state_dict())
    torch.save(state_dict | {5: torch.zeros(3)}, path)


def changed(**entries: Any) -> Callable[[Path], None]:
    """Write a sound state dict with these entries replaced, or left out where they are None."""

    def write(path: Path) -> None:
        state_dict = {**network().state_dict(), **{name.replace("__", "."): value for name, value in entries.items()}}
        torch.save({name: value for name, value in state_dict.items() if value is not None}, path)

    return write


def extra(**entries: Any) -> Callable[[Path], None]:
    return changed(_extra_state={**network().get_extra_state(), **entries})


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": write_missing,
    "truncated": write_truncated,
    "corrupt": write_corrupt,
    "text": lambda path: path.write_text("the best network so far\n"),
    "pickled function": lambda path: path.write_bytes(pickle.dumps(print)),
    "saved list": lambda path: torch.save([1, 2, 3], path),
    "whole module": lambda path: torch.save(network(), path),
    "no extra state": changed(_extra_state=None),
    "extra state without the game": changed(_extra_state={"num_actions": 4, "input": [4, 84, 84]}),
    "a layer missing": changed(hidden__bias=None),
    "a layer too many": changed(more__bias=torch.zeros(3)),
    "another layer shape": changed(conv2__weight=torch.zeros(64, 32, 3, 3)),
    "another input": extra(input=[4, 80, 80]),
    "more actions than the weights": extra(num_actions=18),
    "no actions": extra(num_actions=0),
    "infinitely many actions": extra(num_actions=float("inf")),
    "more actions than memory has room for": extra(num_actions=10**12),
    "game no text": extra(game=7),
    "a name no text": write_name_that_is_no_text,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", BROKEN)
def test_every_other_file_is_refused_in_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    BROKEN[kind](path)
    with pytest.raises(UsageError) as error:
        load_network(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


class Intruder:
    """Runs code wherever it is unpickled."""

    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._mark,)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    mark, path = tmp_path / "was here", tmp_path / "model.pt"
    torch.save({**network().state_dict(), "_extra_state": Intruder(mark)}, path)
    with pytest.raises(UsageError, match=r"model\.pt"):
        load_network(path)
    assert not mark.exists()


def test_state_dict_of_another_game_is_refused_by_the_network() -> None:
    with pytest.raises(ValueError, match="pong"):
        network().load_state_dict(QNetwork("pong", 4).state_dict())
