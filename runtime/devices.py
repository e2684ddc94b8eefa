"""The machine's devices: which are there, how much memory each has free, how the C library keeps what is freed."""

import ctypes
import gc
import math
import os
from typing import Any

import numpy as np
import torch

from runtime.exits import UsageError
from runtime.limits import free_bytes
from runtime.limits import usable_cores as usable_cores  # for cluster/, too

RESERVE_BYTES = 10**9  # for the networks, their work space and the libraries


def tune_allocator() -> None:
    """Let glibc keep the large buffers it frees, which gains 10 to 20% on a CPU; nothing where there is no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        # M_MMAP_THRESHOLD: what is larger is still mapped on its own. Older versions refuse more than 32 MiB.
        _ = mallopt(-3, 2**30) or mallopt(-3, 2**25)


def choose_device(name: str) -> torch.device:
    """The device that --device names; raises `UsageError` when this machine lacks it."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not there.get(kind) or not (index or "0").isdecimal() or int(index or 0) >= count:
        usable = " or ".join(kind for kind, available in there.items() if available)
        raise UsageError(f'this machine has no device "{name}"; choose --device {usable}')
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", int(index or 0))  # set_device refuses one without an index
    torch.cuda.set_device(device)  # streams and graphs are the current device's
    torch.backends.cudnn.allow_tf32 = False  # the paper's arithmetic is float32; convolutions would round to tf32
    return device


def frames_device(device: torch.device) -> torch.device:
    """Where the frames of a memory for `device` live.

    On MPS index_select reads zeros beyond 2**31 elements, 304,000 frames, without an error (pytorch#188756, fixed in
    2.14): there the host, whose memory an Apple GPU shares, keeps and gathers them.
    """
    return torch.device("cpu") if device.type == "mps" else device


def upload(device: torch.device, **arrays: np.ndarray) -> dict[str, torch.Tensor]:
    """Arrays of the host on a device, by name: on the CPU the same memory, to a GPU in one transfer, not waited for.

    The staging memory is pinned, so that the host continues at once; PyTorch keeps it until the transfer is over.
    """
    if device.type != "cuda" or not arrays:
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    staging, layout = pack(arrays, pin_memory=True)
    return unpack(staging.to(device, non_blocking=True), layout)


Layout = dict[str, tuple[int, torch.dtype, tuple[int, ...]]]  # offset, type and shape of each array


def pack(arrays: dict[str, np.ndarray], *, pin_memory: bool) -> tuple[torch.Tensor, Layout]:
    """One uint8 tensor with the bytes of all arrays, each at a multiple of 8, and their layout in it."""
    tensors, layout, size = {name: torch.from_numpy(array) for name, array in arrays.items()}, {}, 0
    for name, tensor in tensors.items():
        layout[name] = size, tensor.dtype, tuple(tensor.shape)
        size += -(-tensor.nbytes // 8) * 8
    packed = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
    for name, view in unpack(packed, layout).items():
        view.copy_(tensors[name])
    return packed, layout


def unpack(packed: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """What `pack` packed, as views of its bytes on whatever device they now are."""
    views = {}
    for name, (begin, dtype, shape) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        views[name] = packed[begin : begin + size].view(dtype).view(shape)
    return views


def set_up_torch(deterministic: bool) -> None:
    """Set what torch keeps for the whole process; `deterministic`: on a GPU, only kernels that repeat their bits."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    if deterministic or torch.are_deterministic_algorithms_enabled():  # the call imports the compiler: 3 s
        torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads_wanted() or min(torch.get_num_threads(), usable_cores()))
    tune_allocator()


def threads_wanted() -> int:
    """The number of threads that OMP_NUM_THREADS asks for; 0 without it."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() else 0


def bfloat16_instructions(device: torch.device) -> list[str]:
    """The names of a device's instructions for numbers of 16 bits; none where they would be slower than float32."""
    if device.type == "cuda":
        return ["cuda"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    there = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return [name for name in ("avx512_bf16", "amx_bf16", "bf16") if there.get(name)]


def platform_fingerprint(device: torch.device, precision: str = "float32") -> dict[str, Any]:
    """What the bits of a run depend on in addition to its config, as far as a program can know it."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    kernels = torch.backends.cpu.get_cpu_capability()
    if precision == "bfloat16":
        kernels = " ".join([kernels, *bfloat16_instructions(device)])
    threads = torch.get_num_threads()
    return {"device": device.type, "gpu": gpu, "kernels": kernels, "threads": threads, "torch": str(torch.__version__)}


def available_bytes(device: torch.device) -> int:
    """Bytes of memory of a device that are free for a replay memory; a reserve for everything else is kept back."""
    gc.collect()  # a memory of an earlier run in this process may still be waiting for it
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return max(int(torch.cuda.mem_get_info(device)[0]) - RESERVE_BYTES, 0)
    return max(free_bytes() - RESERVE_BYTES, 0)
