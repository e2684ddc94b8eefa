"""One thread for PyTorch in the tests and the scripts they start: they compare bits, and batches are small."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; the processes that tests start inherit it

import pytest
import torch

torch.set_num_threads(1)
pytest.register_assert_rewrite("helpers")  # its assertions, too, say what they compared
