"""A training step as one CUDA graph: the CPU launches one graph per step instead of hundreds of kernels."""

import gc
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]

WARM_UP = 3


class Recorder(Protocol):
    """Records work on a device, so that it can be repeated."""

    def warm_up(self, step: Step, images: Tensor, labels: Tensor) -> Tensor:
        """Run `step(images, labels)` once, on the stream on which `record` will record it."""

    def record(self, step: Step, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        """Return a function that runs `step` on the contents that these tensors have when it is called."""


class GraphedStep:
    """`step(images, labels)`, recorded once and then replayed for all batches of the same shape.

    `step` may only depend on its arguments and on tensors that keep their memory (parameters, buffers,
    momentum, the learning rate). It must draw random numbers only from torch's default generator, which a
    replay advances as a step does, and must not copy a value to the CPU. The first `WARM_UP` batches run
    without a graph, so that everything that is allocated once is allocated. Batches with another shape (the
    last of an epoch) never use the graph. The result is valid until the next call.
    """

    def __init__(self, step: Step, recorder: Recorder) -> None:
        self.step, self.recorder = step, recorder
        self.steps = 0
        self.replay: Callable[[], Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        if not self.steps:
            self.images, self.labels = torch.empty_like(images), torch.empty_like(labels)
        if images.shape != self.images.shape:
            return self.step(images, labels)
        self.steps += 1
        self.images.copy_(images)
        self.labels.copy_(labels)
        if self.steps <= WARM_UP:
            return self.recorder.warm_up(self.step, self.images, self.labels)
        if self.replay is None:
            self.replay = self.recorder.record(self.step, self.images, self.labels)
        return self.replay()


class CudaRecorder:
    """CUDA graphs, warmed up and recorded on a separate stream, as CUDA requires."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, step: Step, images: Tensor, labels: Tensor) -> Tensor:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = step(images, labels)
        current.wait_stream(self.stream)
        return result

    def record(self, step: Step, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # CUDA ends a capture in which another graph is freed, such as that of an earlier cell
        # thread_local: allocations of another thread, such as a second cell in this process, are no error.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = step(images, labels)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
