"""Weight distributions against their formulas: moments, support, sign balance, fans, scaling."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiddenweights.errors import UserError
from hiddenweights.masking.distributions import DISTRIBUTIONS
from hiddenweights.masking.rng import stream
from hiddenweights.masking.weights import draw_scores, draw_weights

SHAPE = (250, 100, 4, 5)  # 500,000 weights
FAN_IN, FAN_OUT = 100 * 20, 250 * 20

# Standard deviation about zero, and kind of each distribution.
FORMULAS = {
    "signed_constant": (math.sqrt(2 / FAN_IN), "signs"),
    "unsigned_constant": (math.sqrt(2 / FAN_IN), "one value"),
    "kaiming_normal": (math.sqrt(2 / FAN_IN), "normal"),
    "kaiming_uniform": (math.sqrt(6 / FAN_IN) / math.sqrt(3), "uniform"),
    "xavier_normal": (math.sqrt(2 / (FAN_IN + FAN_OUT)), "normal"),
    "signed_xavier_constant": (math.sqrt(2 / (FAN_IN + FAN_OUT)), "signs"),
    "default": (1 / math.sqrt(FAN_IN) / math.sqrt(3), "uniform"),
}


def test_every_distribution_has_a_formula_here():
    assert set(FORMULAS) == set(DISTRIBUTIONS)


@pytest.mark.parametrize("name", FORMULAS)
def test_moments_support_and_sign_balance(name):
    scale, kind = FORMULAS[name]
    weights = draw_weights(SHAPE, name, stream(0, name))
    assert weights.shape == SHAPE
    assert weights.dtype == torch.float32
    w = weights.numpy().astype(np.float64).ravel()
    n = w.size
    assert np.sqrt((w**2).mean()) == pytest.approx(scale, rel=4e-3)
    if kind == "one value":
        assert np.unique(w).tolist() == [np.float32(scale)]
        return
    assert abs(w.mean()) < 4 * scale / math.sqrt(n)
    assert (w > 0).mean() == pytest.approx(0.5, abs=2 / math.sqrt(n))
    if kind == "signs":
        assert np.unique(w).tolist() == pytest.approx([-scale, scale], rel=1e-7)
    elif kind == "uniform":
        bound = scale * math.sqrt(3)
        assert np.abs(w).max() <= bound * (1 + 1e-7)
        assert np.abs(w).max() > bound * 0.9999
        assert (w**4).mean() == pytest.approx(bound**4 / 5, rel=1e-2)
    else:
        assert (w**4).mean() == pytest.approx(3 * scale**4, rel=3e-2)
        assert np.abs(w).max() > 4 * scale


@pytest.mark.parametrize("name", FORMULAS)
def test_scaled_widens_by_the_root_of_one_over_k(name):
    plain = draw_weights((64, 32, 3, 3), name, stream(0, "w"))
    scaled = draw_weights((64, 32, 3, 3), name, stream(0, "w"), scaled_for_k=0.3)
    rms = [w.double().square().mean().sqrt().item() for w in (plain, scaled)]
    assert rms[1] / rms[0] == pytest.approx(1.8257, abs=1e-4)
    torch.testing.assert_close(scaled, plain * math.sqrt(1 / 0.3), rtol=1e-6, atol=0)


@given(
    k=st.floats(1e-3, 1),
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    name=st.sampled_from([*FORMULAS]),
    seed=st.integers(0, 2**31),
)
def test_draws_are_functions_of_their_arguments(k, shape, name, seed):
    first, again = (draw_weights(shape, name, stream(seed, "w"), scaled_for_k=k) for _ in range(2))
    assert torch.equal(first, again)
    assert tuple(first.shape) == tuple(shape)
    assert torch.isfinite(first).all()


def test_scaling_for_k_of_one_changes_nothing():
    plain, scaled = (
        draw_weights((8, 8), "kaiming_normal", stream(1, "w"), scaled_for_k=k) for k in (None, 1.0)
    )
    assert torch.equal(plain, scaled)


@pytest.mark.parametrize("shape", [(50, 400), (40, 20, 5), (30, 10, 3, 3), (20, 10, 3, 3, 3)])
def test_fans_are_those_of_torch(shape):
    torch.manual_seed(0)
    expected = torch.nn.init.kaiming_normal_(torch.empty(shape), nonlinearity="relu").std()
    assert draw_weights(shape, "kaiming_normal", stream(0, "w")).std() == pytest.approx(
        expected.item(), rel=0.06
    )
    expected = torch.nn.init.xavier_normal_(torch.empty(shape)).std()
    assert draw_weights(shape, "xavier_normal", stream(0, "w")).std() == pytest.approx(
        expected.item(), rel=0.06
    )


def test_scores_are_torchs_kaiming_uniform_with_a_of_root_five():
    scores = draw_scores(SHAPE, stream(0, "scores"))
    reference = torch.nn.init.kaiming_uniform_(torch.empty(SHAPE), a=math.sqrt(5))
    bound = 1 / math.sqrt(FAN_IN)
    assert scores.abs().max() <= bound
    assert scores.dtype == torch.float32
    for quantile in (0.01, 0.25, 0.5, 0.75, 0.99):
        ours, theirs = (np.quantile(x.numpy(), quantile) for x in (scores, reference))
        assert ours == pytest.approx(theirs, abs=bound / 100)


def test_an_unknown_distribution_is_named_with_the_choices():
    with pytest.raises(UserError, match=r"kaiming_norma.*kaiming_normal"):
        draw_weights((2, 2), "kaiming_norma", stream(0, "w"))
