"""Networks whose weights have 16 bits play as those of 32 do."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import save_network

from model import load_network
from pretrained import halve


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
