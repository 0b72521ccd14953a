"""The least time of a selection: its bytes over the memory bandwidth. `python -m benchmarks.roofline`

Counts the bytes that the Triton kernels (hiddenweights/masking/topk_triton.py) move for all layers of a
network when every bracket holds, at the 3.35 TB/s of an H100. benchmarks/gpu.py measures how near they come.
"""

import statistics
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from benchmarks.measure import Row, race, readable, show
from hiddenweights.masking.supermask import weight_layers
from hiddenweights.masking.topk import Memory, keep_largest_each
from hiddenweights.models import build_network

H100 = 3.35e12  # bytes per second, from its data sheet
ARCHITECTURES = ("conv4", "resnet18")


def shapes_of(arch: str, width: float = 1.0) -> list[tuple[int, ...]]:
    """The shapes of the masked layers, for ten classes of 3x32x32 images."""
    network = build_network(arch, channels=3, image_size=32, classes=10, width=width)
    return [tuple(getattr(owner, name).shape) for owner, name, _ in weight_layers(network)]


def forward_bytes(sizes: Sequence[int], result: int = 2) -> int:
    """Bytes moved by a selection and by writing masked weights of `result` bytes each (2 for bfloat16).

    Scores are read twice, to count and collect and to write, 4 bytes each time; weights are read once, 4
    bytes. A layer's candidates, 8 bytes each, are written once and read three times.
    """
    candidates = sum(min(n, 2 * (512 + n // 1024)) for n in sizes)
    return sum(sizes) * (4 + 4 + 4 + result) + candidates * 4 * 8


def backward_bytes(sizes: Sequence[int], grad: int = 2) -> int:
    """Bytes moved for the scores' gradient: reads gradients (`grad` bytes), weights, scores, writes it."""
    return sum(sizes) * (grad + 4 + 4 + 4)


def rows() -> list[Row]:
    """Microseconds at an H100's bandwidth, per step."""
    found = []
    for arch in ARCHITECTURES:
        sizes = [prod(shape) for shape in shapes_of(arch)]
        least = sum(sizes) * 10  # scores read once
        for what, moved in (("forward", forward_bytes(sizes)), ("backward", backward_bytes(sizes))):
            found.append(
                Row(
                    what=f"{arch}, {len(sizes)} layers, {what}: us at 3.35 TB/s",
                    ratio=round(moved / H100 * 1e6, 2),
                    goal="",
                    baseline=f"{sum(sizes):,} weights"
                    + (f", at least {least:,} bytes" * (what == "forward")),
                    ours=f"{moved:,} bytes",
                    rounds=1,
                )
            )
    return found


def measured(arch: str, device: str, width: float = 1.0) -> list[Row]:
    """The time of the kernels in a CUDA graph, over the time that their bytes take at an H100's bandwidth."""
    sizes, values, scores = _layers(arch, width, device)
    kept, low, memory = [n // 2 or 1 for n in sizes], [torch.bfloat16] * len(sizes), Memory()
    grads = [torch.randn_like(score, dtype=torch.bfloat16) for score in scores]
    tracked = [score.requires_grad_() for score in scores]

    def forward() -> tuple[Tensor, ...]:
        return keep_largest_each(values, tracked, kept, low, memory)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), tracked, grads)

    rounds, repeats = (30, 20) if device == "cuda" else (1, 1)
    contestants = {"forward": recorded(forward, device), "forward and backward": recorded(both, device)}
    times = race(contestants, rounds=rounds, repeats=repeats, device=device)
    floors = {"forward": forward_bytes(sizes)}
    floors["forward and backward"] = floors["forward"] + backward_bytes(sizes)
    return [
        Row(
            what=f"{arch}: {name}, time / time of its bytes",
            ratio=round(statistics.median(times[name]) * H100 / moved, 2),
            goal="",
            baseline=f"{moved:,} bytes: {readable(moved / H100)}",
            ours=readable(statistics.median(times[name])),
            rounds=rounds,
        )
        for name, moved in floors.items()
    ]


def _layers(arch: str, width: float, device: str) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Sizes, weights and scores of the layers, convolutions in channels_last."""
    shapes = shapes_of(arch, width)
    values, scores = (
        [
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            for x in (torch.randn(shape, device=device) for shape in shapes)
        ]
        for _ in range(2)
    )
    return [prod(shape) for shape in shapes], values, scores


def recorded(run: Callable[[], object], device: str) -> Callable[[], object]:
    """`run` as a CUDA graph, on a GPU."""
    if device != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        held = run()

    def replay(_: object = held) -> None:
        graph.replay()

    return replay


if __name__ == "__main__":
    show("At an H100's bandwidth, by arithmetic", rows())
