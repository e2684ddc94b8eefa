"""Files whole or not at all; checkpoints that know when they are damaged."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.checkpoint import CheckpointFile, load_file
from runtime.exits import RunError, UsageError
from runtime.files import replacing, write_text


def state(number: int) -> dict[str, Any]:
    return {
        "number": number,
        "weights": torch.full((1_000,), float(number)),
        "big": 2**120 + number,
        "action_log": b"\x00\xff",
    }


def two_saved(folder: Path) -> CheckpointFile:
    checkpoints = CheckpointFile(folder)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    return checkpoints


def number_of(checkpoints: CheckpointFile) -> int:
    loaded, _ = checkpoints.load()
    number = loaded["number"]
    assert torch.equal(loaded["weights"], state(number)["weights"])
    assert (loaded["big"], loaded["action_log"]) == (state(number)["big"], b"\x00\xff")
    return int(number)


def test_the_newest_is_loaded_and_the_one_before_it_kept(tmp_path: Path) -> None:
    checkpoints = two_saved(tmp_path)
    assert (number_of(checkpoints), checkpoints.load()[1]) == (2, None)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert torch.load(checkpoints.newest, weights_only=True)["number"] == 2  # plain data
    damage_flip(checkpoints.newest, 0.5)
    assert (number_of(checkpoints), checkpoints.load()[1]) == (1, "checkpoint.pt: damaged")
    checkpoints.newest.unlink()
    assert number_of(CheckpointFile(tmp_path)) == 1


def damage_flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    checkpoints = CheckpointFile(tmp_path)
    checkpoints.save(state(0) | {"weights": torch.zeros(10)})
    whole = checkpoints.newest.read_bytes()
    for at in range(0, len(whole), 5):
        checkpoints.newest.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            loaded, _ = checkpoints.load()
        except RunError:
            continue
        assert torch.equal(loaded.pop("weights"), torch.zeros(10)), at
        assert loaded == {name: value for name, value in state(0).items() if name != "weights"}, at


@pytest.mark.parametrize("length", [0, 2_000])
def test_a_truncated_or_emptied_checkpoint_is_noticed(tmp_path: Path, length: int) -> None:
    checkpoints = two_saved(tmp_path)
    os.truncate(checkpoints.newest, length)
    assert number_of(checkpoints) == 1


def test_a_damaged_newest_never_pushes_out_the_sound_one_before_it(tmp_path: Path) -> None:
    checkpoints = two_saved(tmp_path)
    damage_flip(checkpoints.newest, 0.5)
    checkpoints.load()
    checkpoints.save(state(3))
    damage_flip(checkpoints.newest, 0.5)
    assert number_of(checkpoints) == 1
    checkpoints.save(state(4))
    checkpoints.save(state(5))
    checkpoints.newest.unlink()
    assert number_of(checkpoints) == 4


def test_two_damaged_checkpoints_are_an_error_that_changes_nothing(tmp_path: Path) -> None:
    checkpoints = two_saved(tmp_path)
    damage_flip(checkpoints.newest, 0.5)
    damage_flip(checkpoints.previous, 0.5)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(RunError, match=r"has no usable checkpoint"):
        checkpoints.load()
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")

    def fail() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_not_there_or_broken_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        load_file(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"not a file of torch's")
    with pytest.raises(UsageError, match="is damaged or was not"):
        load_file(tmp_path / "model.pt")
