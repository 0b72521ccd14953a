"""The selection kernel against an oracle that sorts: exact, whatever the sizes, ties and layouts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiddenweights.masking import topk as selection
from hiddenweights.masking.supermask import supermask
from hiddenweights.masking.topk import _bound, _on_any_device, _on_cpu, keep_largest

IMPLEMENTATIONS = (_on_cpu, _on_any_device)


def sorted_way(values: Tensor, scores: Tensor, kept: int) -> Tensor:
    """`keep_largest` by a stable sort in row-major order."""
    order = torch.sort(scores.abs().flatten(), descending=True, stable=True).indices[:kept]
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order] = True
    return torch.where(mask.view(scores.shape), values, 0.0)


SCORES = {
    "normal": lambda n: torch.randn(n),
    "coarse": lambda n: (torch.randn(n) * 10).round() / 10,
    "three values": lambda n: torch.randint(-1, 2, (n,)).float(),
    "all zero": lambda n: torch.zeros(n),
    "rising": lambda n: torch.arange(n).float(),
    "falling": lambda n: -torch.arange(n).flip(0).float(),
    "periodic": lambda n: (torch.arange(n) % selection._STRIDE).float(),  # the sample sees one value
    "heavy tails": lambda n: torch.randn(n) ** 9,
    "infinite": lambda n: torch.where(torch.rand(n) < 0.3, torch.inf, torch.randn(n)),
}


@pytest.mark.parametrize("n", [1, 2, 100, selection._SMALL + 1, 40_000])
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("select", IMPLEMENTATIONS)
def test_agrees_with_a_sort(select, kind: str, n: int) -> None:
    torch.manual_seed(n)
    scores, values = SCORES[kind](n), torch.randn(n)
    for kept in sorted({1, max(1, n // 1000), max(1, n // 2), max(1, n - 1), n}):
        assert torch.equal(select(values, scores, kept, values.dtype), sorted_way(values, scores, kept)), kept


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(3, 2, 3, 3), (4, 1, 1, 1), (1, 5, 2, 1), (2, 3, 1, 4)]),
    levels=st.integers(1, 20),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_ties_fall_to_the_first_in_row_major_order_in_any_layout(shape, levels, seed, data) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels + 1, shape, generator=generator).float()
    values = torch.randn(shape, generator=generator)
    kept = data.draw(st.integers(1, scores.numel()))
    expected = sorted_way(values, scores, kept)
    layouts = (
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: torch.stack((x, x), -1)[..., 0],  # with gaps
    )
    for select in IMPLEMENTATIONS:
        for layout in layouts:
            result = select(layout(values), layout(scores), kept, values.dtype)
            assert torch.equal(result, expected)
            assert result.count_nonzero() == kept


@pytest.mark.parametrize("digits", [8, 2], ids=["distinct", "tied"])
def test_bound_does_not_depend_on_the_sample(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).normal(size=100_000).round(digits).astype(np.float32)
    expected = np.sort(np.abs(scores))
    for stride, chunk in ((1, 1000), (7, 99_999), (61, 1 << 18), (5000, 12_345), (100_000, 1 << 18)):
        monkeypatch.setattr(selection, "_STRIDE", stride)
        monkeypatch.setattr(selection, "_CHUNK", chunk)
        for rank in (1, 2, 500, 50_000, 99_998, 99_999):
            bound = expected[rank - 1]
            assert _bound(scores, rank) == (bound, (expected[rank:] == bound).sum())


def test_scores_are_left_as_they_are() -> None:
    for n in (100, 20_000):
        scores = torch.randn(n)
        before = scores.clone()
        keep_largest(torch.ones(n), scores, n // 3)
        assert torch.equal(scores, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_selection_is_in_the_precision_of_the_scores(dtype: torch.dtype) -> None:
    scores = 1 + torch.arange(1000, dtype=torch.float32) * 2**-20  # all equal in bfloat16
    values = torch.ones(1000, dtype=dtype)
    for select in IMPLEMENTATIONS:
        for wanted in (dtype, torch.bfloat16):
            result = select(values, scores, 10, wanted)
            assert result.dtype == wanted
            assert torch.equal(result.nonzero().flatten(), torch.arange(990, 1000))


def test_gradient_goes_straight_through_for_every_edge() -> None:
    scores = torch.tensor([0.5, -2.0, 0.0, 3.0, -0.1], requires_grad=True)
    values, upstream = torch.tensor([1.0, 2.0, 3.0, -4.0, 5.0]), torch.tensor([1.0, 10.0, 100.0, 1000.0, 1.0])
    keep_largest(values, scores, 2).backward(upstream)
    assert scores.grad is not None
    assert scores.grad.tolist() == [1.0, -20.0, 0.0, -4000.0, -5.0]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    values = torch.randn(8, 4, 3, 3)
    scores = torch.randn(8, 4, 3, 3, requires_grad=True)

    def step(values: Tensor, scores: Tensor) -> Tensor:
        return (keep_largest(values, scores, 100) * 2).sum()

    loss = torch.compile(step, backend=backend, fullgraph=True)(values, scores)
    (compiled,) = torch.autograd.grad(loss, scores)
    assert torch.equal(loss, step(values, scores))
    assert torch.equal(compiled, torch.autograd.grad(step(values, scores), scores)[0])


def test_the_operator_keeps_torchs_contract() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        values, scores = (torch.randn(4, 3, 2, 2).to(memory_format=layout) for _ in range(2))
        torch.library.opcheck(
            torch.ops.hiddenweights.keep_largest.default,
            (values, scores, 20, torch.bfloat16),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_a_gpu_without_triton_selects_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_kernels", lambda: None)
    values, scores = torch.randn(1000), torch.randn(1000)
    assert torch.equal(selection._on_cuda(values, scores, 300, values.dtype), sorted_way(values, scores, 300))


def test_the_kernels_are_used_only_with_a_c_compiler(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton needs one at the first launch."""
    pytest.importorskip("triton")
    found = selection._kernels.__wrapped__
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="compiler"):
        assert found() is None
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    assert found() is not None
    compiler.unlink()
    monkeypatch.setenv("CC", "/opt/cc")
    assert found() is not None


@pytest.mark.parametrize("shape", [(20, 30), (6, 5, 3, 3)])
def test_masked_weights_come_in_autocasts_precision_with_the_gradient_of_a_cast(shape) -> None:
    values = torch.randn(shape)
    results = []
    for cast in (False, True):
        torch.manual_seed(0)
        scores = torch.randn(shape, requires_grad=True)
        if cast:
            result = keep_largest(values, scores, 50).to(torch.bfloat16)
        else:
            result = keep_largest(values, scores, 50, torch.bfloat16)
        result.backward(torch.randn(shape).to(torch.bfloat16))
        results.append((result, scores.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_layers_weight_under_autocast_is_what_it_computes_with() -> None:
    network = supermask(torch.nn.Sequential(torch.nn.Linear(30, 20, bias=False)))
    weight = network[0].weight
    assert weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network[0].weight, weight.to(torch.bfloat16))
