"""The networks that come with the project play; weights of 16 bits are those of 32, rounded."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, save_network

from evaluate import EvaluationConfig, play
from pretrained import halve
from runtime.networks import load_network
from wrappers import rom_name


def test_halved_weights_are_half_the_bytes_and_the_same_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = save_network(tmp_path / "whole.pt"), tmp_path / "half.pt"
    monkeypatch.setattr(sys, "argv", ["halve.py", str(whole), str(half)])
    halve.main()
    assert half.stat().st_size < 0.51 * whole.stat().st_size
    of_whole, of_half = load_network(whole).state_dict(), load_network(half).state_dict()
    assert of_half.pop("_extra_state") == of_whole.pop("_extra_state")
    for name, weights in of_whole.items():
        assert of_half[name].dtype == torch.float32
        assert torch.equal(of_half[name], weights.half().float())


# The least mean score of 2 games of a minute: about half of what they reach, and far above a random agent's.
LEAST = {"breakout": 20, "pong": 0, "space_invaders": 350, "beam_rider": 500, "enduro": 15}


def test_each_network_that_comes_with_the_project_has_a_least_score() -> None:
    assert {path.stem for path in (ROOT / "pretrained").glob("*.pt")} == {*LEAST}
    assert (ROOT / "model.pt").read_bytes() == (ROOT / "pretrained" / "breakout.pt").read_bytes()


@pytest.mark.parametrize("game", LEAST)
def test_a_network_that_comes_with_the_project_plays_far_above_random(game: str) -> None:
    network = load_network(ROOT / "pretrained" / f"{game}.pt")
    assert rom_name(network.game) == game
    played = play(game, network, EvaluationConfig(games=2, seed=1, minutes=1.0))
    assert np.mean([finished.score for finished in played]) > LEAST[game]
