"""CUDA graphs: one launch instead of about 70 per update."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from q_agent import QAgent


def capture_cuda_graphs(agent: QAgent) -> None:
    """Let an agent on a CUDA device act and learn by captured graphs of its own functions."""
    agent.greedy_actions = Graphed(agent.greedy_actions, agent.tensors)  # type: ignore[method-assign, assignment]
    agent.learn_on_device = Graphed(agent.learn_on_device, agent.tensors)  # type: ignore[method-assign, assignment]


class Graphed:
    """A function of a tensor, or of a dataclass of tensors, as a CUDA graph.

    It is captured the first time it meets an input of a shape. The input is copied into standing buffers; what the
    function writes lives in tensors that never move, which `written` names.
    """

    def __init__(self, function: Callable[[Any], Tensor], written: Callable[[], dict[str, Tensor]]):
        self._function = function
        self._written = written
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}

    def __call__(self, argument: Any) -> Tensor:
        inputs = _tensors_of(argument)
        key = tuple((name, tensor.shape) for name, tensor in inputs.items())
        if key not in self._captured:
            self._captured[key] = self._capture(argument)
        graph, buffers, output = self._captured[key]
        for name, tensor in inputs.items():
            buffers[name].copy_(tensor)
        graph.replay()
        return output

    def _capture(self, argument: Any) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]:
        inputs = _tensors_of(argument)
        buffers = {name: torch.empty_like(tensor, device="cuda").copy_(tensor) for name, tensor in inputs.items()}
        standing = buffers["input"] if isinstance(argument, Tensor) else dataclasses.replace(argument, **buffers)
        before = {name: tensor.clone() for name, tensor in self._written().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # cuDNN and cuBLAS choose and allocate before the capture, not in it
            for _ in range(3):
                self._function(standing)
        torch.cuda.current_stream().wait_stream(stream)
        gc.collect()  # a graph that nobody uses any more must not go in the middle of a capture (pytorch#161037)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            output = self._function(standing)
        for name, tensor in self._written().items():  # the warm-up has learned; the capture itself runs nothing
            tensor.copy_(before[name])
        return graph, buffers, output


def _tensors_of(argument: Any) -> dict[str, Tensor]:
    values = {"input": argument} if isinstance(argument, Tensor) else vars(argument)
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
