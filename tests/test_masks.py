"""Which weights are kept, against an oracle that sorts; the gradient, against formula and differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hiddenweights.masking.masks import kept_count, top_k_mask


def oracle(scores: torch.Tensor, k: float) -> np.ndarray:
    """Sort the magnitudes, largest first, the earlier of two equal ones first; keep the first ones."""
    magnitudes = [abs(score) for score in scores.reshape(-1).tolist()]
    order = np.argsort([-magnitude for magnitude in magnitudes], kind="stable")
    mask = np.zeros(len(magnitudes))
    for position in order[: max(1, round(k * len(magnitudes)))]:
        mask[position] = 1
    return mask.reshape(scores.shape)


def check(scores: torch.Tensor, k: float) -> None:
    n = scores.numel()
    mask = top_k_mask(scores, kept_count(k, n))
    assert mask.shape == scores.shape
    assert mask.dtype == scores.dtype
    assert mask.sum() == max(1, round(k * n))
    assert np.array_equal(mask.numpy(), oracle(scores, k))


def tied(n: int, generator: torch.Generator) -> torch.Tensor:
    """Few different magnitudes, both signs, many zeros."""
    return torch.randint(-3, 4, (n,), generator=generator) / 4


KINDS = {
    "random": lambda n, g: torch.randn(n, generator=g),
    "tied": tied,
    "all equal": lambda n, g: torch.full((n,), 0.1),
    "equal but for the sign": lambda n, g: torch.randint(0, 2, (n,), generator=g) * 0.5 - 0.25,
    "zeros": lambda n, g: torch.zeros(n),
    "negative zeros": lambda n, g: -torch.zeros(n),
    "mostly zeros": lambda n, g: torch.randn(n, generator=g) * (torch.rand(n, generator=g) < 0.1),
    "ascending": lambda n, g: torch.arange(n) / n,
    "descending": lambda n, g: -torch.arange(n, 0, -1) / n,
    "subnormal": lambda n, g: torch.randint(0, 5, (n,), generator=g) * 1e-45,
    "bfloat16 values": lambda n, g: torch.randn(n, generator=g).bfloat16().float(),
    "one giant": lambda n, g: torch.cat([torch.randn(n - 1, generator=g), torch.tensor([1e38])]),
    "infinite": lambda n, g: torch.randn(n, generator=g) / (torch.rand(n, generator=g) > 0.2),
    "periodic": lambda n, g: (torch.arange(n) % 61 == 0) * 1.0 + torch.rand(n, generator=g) / 10,
}
SIZES = [1, 2, 3, 7, 64, 1000, 8191, 8192, 8193, 20_011, 100_000]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_the_mask_is_the_oracles(kind, n):
    scores = KINDS[kind](n, torch.Generator().manual_seed(n))
    for k in (1 / n, 0.003, 0.1, 0.5, 0.9, 0.999, 1.0):
        if 0 < k <= 1 and (n < 20_000 or k in (0.003, 0.5, 1.0)):
            check(scores, k)


@pytest.mark.parametrize("n", [10**6, 10**7])
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_the_mask_is_the_oracles_for_large_layers(kind, n):
    """The oracle by numpy alone, as a loop over 10^7 would take half a minute."""
    scores = KINDS[kind](n, torch.Generator().manual_seed(n))
    order = np.argsort(-np.abs(scores.numpy()), kind="stable")
    for kept in (1, round(0.3 * n), n - 1, n) if n < 10**7 else (round(0.1 * n), n // 2):
        expected = np.zeros(n, np.float32)
        expected[order[:kept]] = 1
        assert np.array_equal(top_k_mask(scores, kept).numpy(), expected)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=6),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0]),
            st.floats(allow_nan=False, width=32),
        ),
    ),
    st.floats(1e-6, 1),
)
def test_the_mask_is_the_oracles_for_any_scores(scores, k):
    check(torch.from_numpy(scores), k)


@given(st.floats(1e-9, 1), st.integers(1, 10**8))
def test_at_least_one_weight_is_kept_and_never_more_than_all(k, n):
    assert kept_count(k, n) == max(1, round(k * n))
    assert 1 <= kept_count(k, n) <= n


def test_the_count_does_not_suffer_from_float_arithmetic():
    """Where dropping int((1 - k) * n) would be one off."""
    assert kept_count(0.9, 1000) == 900
    assert 1000 - int((1 - 0.9) * 1000) == 901


@pytest.mark.parametrize("kind", ["random", "tied", "all equal", "zeros"])
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (32, 64, 3, 3), (1, 5, 1, 1), (5, 1, 3, 3)])
def test_memory_format_does_not_matter(kind, shape):
    """Which of equal scores is kept is decided in row-major order, wherever they lie in memory."""
    scores = KINDS[kind](int(np.prod(shape)), torch.Generator().manual_seed(1)).reshape(shape)
    strided = [
        scores.contiguous(memory_format=torch.channels_last),
        scores.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([scores, scores + 1], dim=-1)[..., 0],
    ]
    for k in (0.1, 0.5, 0.9):
        for same in strided:
            assert torch.equal(same, scores)
            check(same, k)


def test_double_precision_scores_are_told_apart_beyond_single_precision():
    scores = 1 + torch.arange(1000, dtype=torch.float64) * 1e-12
    assert scores.float().unique().numel() == 1
    check(scores, 0.25)


# --- the gradient ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.05, 0.5, 1.0])
def test_the_gradient_goes_straight_through_to_the_magnitude_of_every_edge(k):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 30, generator=g).requires_grad_()
    weight, incoming = torch.randn(40, 30, generator=g), torch.randn(40, 30, generator=g)
    (weight * top_k_mask(scores, kept_count(k, 1200))).backward(incoming)
    assert torch.equal(scores.grad, scores.detach().sign() * weight * incoming)
    assert (scores.grad != 0).all()  # the edges that are not kept learn, too


def test_the_gradient_agrees_with_numerical_differences_through_the_surrogate():
    """The surrogate is m + |s| - |s0|: the mask at s0, and the slope of |s|. In double precision."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=g, dtype=torch.float64)
    inputs = torch.randn(7, 5, generator=g, dtype=torch.float64)
    target = torch.randn(7, 6, generator=g, dtype=torch.float64)
    start = torch.randn(6, 5, generator=g, dtype=torch.float64)

    def loss(mask):
        return ((torch.relu(inputs @ (weight * mask).T) - target) ** 2).sum()

    scores = start.clone().requires_grad_()
    loss(top_k_mask(scores, 12)).backward()
    mask = torch.from_numpy(oracle(start, 0.4))
    for edge in np.ndindex(6, 5):
        step = torch.zeros(6, 5, dtype=torch.float64)
        step[edge] = 1e-6
        rise = loss(mask + (start + step).abs() - start.abs()) - loss(
            mask + (start - step).abs() - start.abs()
        )
        assert scores.grad[edge].item() == pytest.approx(rise.item() / 2e-6, rel=1e-6, abs=1e-7)


def test_no_gradient_flows_where_none_is_asked_for():
    scores = torch.randn(10)
    assert not top_k_mask(scores, 5).requires_grad
    with torch.no_grad():
        assert not top_k_mask(scores.clone().requires_grad_(), 5).requires_grad


def test_scores_that_are_not_numbers_do_not_stop_the_selection():
    """Training notices them at the end of the epoch; until then it must not crash."""
    scores = torch.randn(10_000)
    scores[::7] = float("nan")
    for bad in (scores, torch.full((100,), float("nan"))):
        mask = top_k_mask(bad, bad.numel() // 2)
        assert mask.shape == bad.shape
