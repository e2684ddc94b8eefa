"""How large a replay memory must be, and how large it may be."""

import re

import psutil
import pytest
import torch

from runtime.exits import UsageError
from runtime.memory_size import check_size

CPU = torch.device("cpu")


def test_size_that_is_no_multiple_names_one_that_is() -> None:
    for size, num_envs in ((100, 3), (1_000_001, 32), (5, 3), (31, 32)):
        with pytest.raises(UsageError, match="--replay-size") as error:
            check_size(size, num_envs, CPU)
        nearest = int(re.findall(r"[\d,]+$", str(error.value))[0].replace(",", ""))
        check_size(nearest, num_envs, CPU)
        assert nearest // num_envs >= 8


@pytest.mark.parametrize("num_envs", [1, 3, 32])
def test_size_too_small_to_sample_from_names_the_smallest(num_envs: int) -> None:
    for size in (-num_envs, 0, num_envs, 7 * num_envs):
        with pytest.raises(UsageError, match=f"at least {8 * num_envs:,}"):
            check_size(size, num_envs, CPU)
    check_size(8 * num_envs, num_envs, CPU)


def test_size_too_large_for_the_machine_names_what_fits() -> None:
    total, available = psutil.virtual_memory()[:2]
    with pytest.raises(UsageError, match="GB") as error:
        check_size(total // 7_000 // 7 * 7 * 2, 7, CPU)
    fits = int(re.findall(r"choose --replay-size (\d+) or less", str(error.value))[0])
    assert fits % 7 == 0
    # A whole GB is kept back; half of it is left here for what other processes do meanwhile.
    assert 0 < fits * 7_063 < available - 0.5e9
