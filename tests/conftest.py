"""One thread for PyTorch in the tests: they compare bits and count steps, and small batches gain nothing from more."""

import torch

torch.set_num_threads(1)
