"""A training step as one CUDA graph: the CPU launches one thing a step, not hundreds."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]

WARM_UP = 3


class Recorder(Protocol):
    """How a device records work to do it again."""

    def warm_up(self, step: Step, images: Tensor, labels: Tensor) -> Tensor:
        """`step(images, labels)`, done where `record` will record it."""

    def record(self, step: Step, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        """A function that does `step` again on what these very tensors hold by then. Does nothing yet."""


class GraphedStep:
    """`step(images, labels)` on batches of the first one's shape, recorded once and replayed from then on.

    `step` must be a function of its arguments and of tensors that stay where they are (parameters,
    buffers, momentum, the learning rate), draw nothing at random, and read no value of the device. The
    first `WARM_UP` batches take real steps as they are, which settles what is allocated once. Batches of
    another shape (the last of an epoch) always do. The result holds until the next call.
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
    """CUDA graphs, warmed up and recorded on one stream of their own, as CUDA wants them."""

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
        # thread_local: another thread's allocations (a trial beside this one) are no error.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = step(images, labels)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
