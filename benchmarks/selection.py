"""Mask and masked weight of a layer: a full sort against `keep_largest`. `python -m benchmarks.selection`

It takes about a minute on one CPU thread. tests/test_fast_guard.py uses it, too.
"""

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measure import Row, compare, race, report
from benchmarks.roofline import recorded, shapes_of
from benchmarks.straightforward import SortAndIndex
from hiddenweights.masking.topk import Memory, _on_any_device, keep_largest_each

CONV4 = shapes_of("conv4")


def sort_against_ours(
    what: str, shapes: list[tuple[int, ...]], *, k: float = 0.5, rounds: int, goal: str, device: str = "cpu"
) -> list[Row]:
    """For all layers of `shapes`, the mask of the top k by |score| and the masked weight.

    On a GPU also without brackets, and with torch's `topk`, which is used without Triton. Each is a CUDA
    graph, so that the GPU's time is measured.
    """
    layers: list[tuple[Tensor, Tensor, int]] = []
    for shape in shapes:
        scores = torch.randn(shape, device=device)
        layers.append((torch.randn(shape, device=device).sign(), scores, round(k * scores.numel())))

    def sort_and_index() -> list[Tensor]:
        return [w * SortAndIndex.apply(s.abs(), kept) for w, s, kept in layers]

    values, scores, counts = zip(*layers, strict=True)
    dtypes, memory = [torch.float32] * len(layers), Memory()

    def ours() -> tuple[Tensor, ...]:
        return keep_largest_each(values, scores, counts, dtypes, memory)

    def without_brackets() -> tuple[Tensor, ...]:
        return keep_largest_each(values, scores, counts, dtypes)

    def topk() -> list[Tensor]:
        return [_on_any_device(w, s, kept, w.dtype) for w, s, kept in layers]

    contestants: dict[str, Callable[[], Sequence[Tensor]]] = {"sort": sort_and_index, "ours": ours}
    if device == "cuda":
        contestants |= {"no brackets": without_brackets, "topk": topk}
    for contestant in contestants.values():
        for a, b in zip(sort_and_index(), contestant(), strict=True):
            assert (
                a.count_nonzero() == b.count_nonzero()
            )  # a sort does not determine which of equal scores are kept
    runs = {name: recorded(run, device) for name, run in contestants.items()}
    times = race(runs, rounds=rounds, repeats=10 if device == "cuda" else 1, device=device)
    return [compare(f"{what}: {name}", times, "sort", name, goal) for name in times if name != "sort"]


def run(device: str = "cpu") -> list[Row]:
    goal = "20x, aim 60x" if device == "cpu" else "10x, aim 25x"
    rows = [
        *sort_against_ours("Conv4, 7 layers, k = 0.5", CONV4, rounds=9, goal=goal, device=device),
        *sort_against_ours("10^6 scores, k = 0.5", [(10**6,)], rounds=15, goal=goal, device=device),
        *sort_against_ours("10^6 scores, k = 0.1", [(10**6,)], k=0.1, rounds=15, goal=goal, device=device),
        *sort_against_ours("10^7 scores, k = 0.5", [(10**7,)], rounds=5, goal=goal, device=device),
    ]
    report("selection" if device == "cpu" else "selection_gpu", rows, device)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(*sys.argv[1:])
