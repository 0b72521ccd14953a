"""Each mask method against what its paper says, on layers small enough to compute by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hiddenweights.errors import UserError
from hiddenweights.masking.masks import METHODS, EdgePopup, IteRand, Mask, top_k_mask
from hiddenweights.masking.rng import stream
from hiddenweights.masking.supermask import (
    current_masks,
    frozen_weights,
    masks_of,
    select_together,
    supermask,
)
from hiddenweights.masking.weights import draw_weights

pytestmark = pytest.mark.arithmetic


def small_network(**options) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5, bias=False)
    )
    return supermask(network, **options)


def by_hand(network: nn.Module, images: torch.Tensor, effective: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output of `small_network` with the given effective weights."""
    hidden = F.relu(F.conv2d(images, effective["0.weight"]))
    return hidden.flatten(1) @ effective["3.weight"].T


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("selection", ["layer", "global"])
@pytest.mark.parametrize("method", ["edge_popup", "random", "iterand"])
def test_the_effective_weight_is_mask_times_weight(method, selection, images):
    network = small_network(method=method, selection=selection, k=0.3, distribution="kaiming_normal")
    masks, weights = current_masks(network), frozen_weights(network)
    effective = {name: weights[name] * masks[name] for name in masks}
    torch.testing.assert_close(network(images), by_hand(network, images, effective))
    assert torch.equal(network[3].weight, effective["3.weight"])


# --- selection ---------------------------------------------------------------------------------------------


def test_selection_by_layer_keeps_k_of_each():
    for mask in current_masks(small_network(k=0.3)).values():
        assert mask.sum() == round(0.3 * mask.numel())


@pytest.mark.parametrize("method", ["edge_popup", "random", "iterand", "biprop"])
def test_global_selection_keeps_the_top_k_of_all_scores_together(method, images):
    network = small_network(method=method, selection="global", k=0.2)
    scores = [mask.scores.detach() for mask in masks_of(network).values()]
    together = torch.cat([s.flatten() for s in scores]).abs()
    threshold = together.sort(descending=True).values[round(0.2 * together.numel()) - 1]
    for mask, s in zip(current_masks(network).values(), scores, strict=True):
        assert torch.equal(mask, s.abs() >= threshold)
    fractions = [mask.float().mean().item() for mask in current_masks(network).values()]
    assert max(fractions) - min(fractions) > 0.05  # fan-ins of 27 and 128 spread the scores differently


def test_global_selection_holds_outside_of_the_networks_own_forward_pass(images):
    """A submodule called alone, or recomputed in the backward pass, must have the same mask."""
    network = small_network(selection="global", k=0.2)
    whole = network(images)
    piecewise = images
    for module in network:
        piecewise = module(piecewise)
    assert torch.equal(piecewise, whole)
    assert torch.equal(network[3].weight != 0, current_masks(network)["3.weight"])


def test_a_failed_forward_pass_leaves_no_stale_selection(images):
    network = small_network(selection="global", k=0.2)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 2, 6, 6))
    with torch.no_grad():
        for mask in masks_of(network).values():
            mask.scores.copy_(torch.rand(mask.scores.shape))
    assert torch.equal(network[3].weight != 0, current_masks(network)["3.weight"])


def test_a_copy_selects_from_its_own_scores(images):
    network = small_network(selection="global", k=0.4)
    twin = copy.deepcopy(network)
    assert torch.equal(twin(images), network(images))
    with torch.no_grad():
        masks_of(twin)["0.weight"].scores.sign_()
    assert current_masks(twin)["0.weight"].all()
    assert not current_masks(network)["0.weight"].all()
    assert not torch.equal(twin(images), network(images))


def test_gradients_under_global_selection_are_those_of_the_formula(images):
    network = small_network(selection="global", k=0.2, distribution="kaiming_normal")
    masks, weights = current_masks(network), frozen_weights(network)
    effective = {name: (weights[name] * masks[name]).requires_grad_() for name in masks}
    network(images).square().sum().backward()
    by_hand(network, images, effective).square().sum().backward()
    for name, mask in masks_of(network).items():
        expected = mask.scores.detach().sign() * weights[name] * effective[name].grad
        torch.testing.assert_close(mask.scores.grad, expected)


# --- edge-popup and the control ----------------------------------------------------------------------------


def test_the_random_control_has_nothing_to_learn_and_the_same_counts():
    control, network = (small_network(method=method, k=0.3) for method in ("random", "edge_popup"))
    assert not [p for p in control.parameters() if p.requires_grad]
    for ours, theirs in zip(current_masks(control).values(), current_masks(network).values(), strict=True):
        assert ours.sum() == theirs.sum()


def test_the_random_controls_masks_are_unrelated_between_seeds():
    masks = [
        current_masks(small_network(method="random", k=0.5, score_seed=seed))["3.weight"] for seed in (0, 1)
    ]
    n = masks[0].numel()
    assert (masks[0] & masks[1]).float().mean().item() == pytest.approx(0.25, abs=4 / math.sqrt(n) / 2)


# --- sampled (Zhou et al. 2019) ----------------------------------------------------------------------------


def test_sampled_draws_a_fresh_mask_at_every_forward_pass_in_training_and_evaluation(images):
    network = small_network(method="sampled")
    for training in (True, False):
        network.train(training)
        assert not torch.equal(network(images), network(images))


def test_sampled_keeps_each_weight_with_the_sigmoid_of_its_score():
    network = small_network(method="sampled", distribution="unsigned_constant")
    mask = masks_of(network)["3.weight"]
    with torch.no_grad():
        mask.scores.copy_(torch.linspace(-4, 4, mask.scores.numel()).view(mask.scores.shape))
    torch.manual_seed(0)
    draws = torch.stack([mask.mask().detach() for _ in range(2000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}  # exactly, not up to rounding
    p = torch.sigmoid(mask.scores.detach())
    deviations = (draws.mean(0) - p) / (p * (1 - p) / 2000).sqrt()
    assert deviations.abs().max() < 5
    assert deviations.square().mean().item() == pytest.approx(1, abs=0.25)


def test_sampled_has_the_gradient_of_the_probability(images):
    network = small_network(method="sampled", distribution="kaiming_normal")
    weights = frozen_weights(network)
    torch.manual_seed(7)
    drawn = {name: mask.mask().detach() for name, mask in masks_of(network).items()}
    effective = {name: (weights[name] * drawn[name]).requires_grad_() for name in drawn}
    by_hand(network, images, effective).square().sum().backward()
    torch.manual_seed(7)
    network(images).square().sum().backward()
    for name, mask in masks_of(network).items():
        p = torch.sigmoid(mask.scores.detach())
        torch.testing.assert_close(mask.scores.grad, weights[name] * effective[name].grad * p * (1 - p))


def test_extreme_probabilities_of_sampled_are_certainties():
    network = small_network(method="sampled")
    mask = masks_of(network)["3.weight"]
    for score, expected in ((1e4, 1.0), (-1e4, 0.0), (math.inf, 1.0), (-math.inf, 0.0)):
        with torch.no_grad():
            mask.scores.fill_(score)
        assert (mask.mask() == expected).all()


# --- IteRand (Chijiwa et al. 2021) -------------------------------------------------------------------------


def iterand_layer(distribution: str = "kaiming_normal", **options) -> tuple[Mask, torch.Tensor]:
    network = supermask(
        nn.Sequential(nn.Linear(400, 300, bias=False)),
        method="iterand", distribution=distribution, k=0.3, weight_seed=5, **options,
    )  # fmt: skip
    return masks_of(network)["0.weight"], frozen_weights(network)["0.weight"]


def test_iterand_has_its_papers_values():
    assert (IteRand.period, IteRand.rate) == (300, 0.1)


def test_iterand_touches_nothing_but_every_300_steps():
    mask, weight = iterand_layer()
    before = weight.clone()
    for step in (1, 2, 299, 301, 450, 599):
        mask.after_step(weight, step)
    assert torch.equal(weight, before)
    mask.after_step(weight, 600)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("scaled", [False, True])
def test_iterand_redraws_unkept_weights_alone_each_with_chance_r(scaled):
    mask, weight = iterand_layer(scaled=scaled)
    before, kept = weight.clone(), mask.mask() == 1
    mask.after_step(weight, 300)
    changed = weight != before
    assert not (changed & kept).any()
    unkept = int((~kept).sum())
    share = changed.sum().item() / unkept
    assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / unkept))
    spread = math.sqrt(2 / 400) * (math.sqrt(1 / 0.3) if scaled else 1)
    assert weight[changed].std().item() == pytest.approx(spread, rel=0.03)
    assert (weight[changed].mean() / spread).abs() < 4 / math.sqrt(int(changed.sum()))


def test_iterands_draws_are_fresh_each_time_and_repeat_for_the_same_seed():
    results = []
    for steps in ((300,), (300,), (600,)):
        mask, weight = iterand_layer()
        for step in steps:
            mask.after_step(weight, step)
        results.append(weight.clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_iterand_over_signs_flips_half_of_what_it_redraws():
    mask, weight = iterand_layer("signed_constant")
    before = weight.clone()
    mask.after_step(weight, 300)
    assert weight.abs().unique().numel() == 1
    unkept = int((mask.mask() == 0).sum())
    assert (weight != before).sum().item() / unkept == pytest.approx(0.05, abs=4 * math.sqrt(0.0475 / unkept))


def test_iterand_spares_what_global_selection_keeps():
    network = small_network(method="iterand", selection="global", k=0.3, distribution="kaiming_normal")
    before = {name: weight.clone() for name, weight in frozen_weights(network).items()}
    kept = current_masks(network)
    for name, mask in masks_of(network).items():
        mask.rate = 1.0
        mask.after_step(frozen_weights(network)[name], 300)
        assert torch.equal(frozen_weights(network)[name] == before[name], kept[name])


def test_iterand_needs_a_distribution():
    with pytest.raises(UserError, match="distribution"):
        small_network(method="iterand", distribution=None)


# --- biprop (Diffenderfer & Kailkhura 2021) ----------------------------------------------------------------


def test_biprop_binarises_and_gains_the_mean_magnitude_of_the_kept():
    network = small_network(method="biprop", k=0.4, distribution="kaiming_normal")
    for name, layer in (("0.weight", network[0]), ("3.weight", network[3])):
        weight, mask = frozen_weights(network)[name], current_masks(network)[name]
        alpha = sum(abs(w) for w in weight[mask].tolist()) / int(mask.sum())
        expected = torch.where(mask, alpha * weight.sign(), torch.zeros(()))
        torch.testing.assert_close(layer.weight, expected)
        assert layer.weight.unique().numel() == 3


def test_biprops_gradient_holds_the_gain_constant(images):
    network = small_network(method="biprop", k=0.4, distribution="kaiming_normal")
    effective = {name: network[int(name[0])].weight.detach().requires_grad_() for name in masks_of(network)}
    by_hand(network, images, effective).square().sum().backward()
    network(images).square().sum().backward()
    for name, mask in masks_of(network).items():
        alpha = effective[name].detach().abs().max()
        signs = frozen_weights(network)[name].sign()
        expected = mask.scores.detach().sign() * alpha * signs * effective[name].grad
        torch.testing.assert_close(mask.scores.grad, expected)


def test_biprop_over_one_magnitude_is_edge_popup(images):
    ours, theirs = (small_network(method=method, k=0.4) for method in ("biprop", "edge_popup"))
    torch.testing.assert_close(ours(images), theirs(images))


def test_biprop_survives_a_layer_of_which_global_selection_keeps_nothing(images):
    network = small_network(method="biprop", selection="global", k=0.1)
    with torch.no_grad():
        masks_of(network)["0.weight"].scores.mul_(1e-6)
    assert not current_masks(network)["0.weight"].any()
    output = network(images)
    output.square().sum().backward()
    assert torch.equal(output, torch.zeros_like(output))
    assert all(torch.isfinite(mask.scores.grad).all() for mask in masks_of(network).values())


# --- the next method ---------------------------------------------------------------------------------------


class Soft(Mask):
    """A method of the tests: the weight times tanh |score|."""

    selects_globally = False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.scores.abs().tanh()


def test_a_new_method_is_one_small_class(images):
    network = small_network(method=Soft)
    network(images).sum().backward()
    mask = masks_of(network)["3.weight"]
    assert mask.scores.grad is not None
    expected = frozen_weights(network)["3.weight"] * mask.scores.abs().tanh()
    assert torch.equal(network[3].weight, expected)
    with pytest.raises(UserError, match="global"):
        small_network(method=Soft, selection="global")


class Positive(EdgePopup):
    """A method of the tests: the top k by score instead of by |score|."""

    def mask(self) -> torch.Tensor:
        return top_k_mask(self.scores.exp(), self.kept)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("base", [EdgePopup, IteRand])
def test_a_subclass_may_replace_only_the_mask(base, together, images):
    network = small_network(method=type("Mine", (Positive, base), {}))
    if together:
        select_together(network)
    used = []
    network[3].register_forward_pre_hook(lambda layer, _: used.append(layer.weight))
    network(images)
    mask = masks_of(network)["3.weight"]
    assert torch.equal(used[0] != 0, mask.mask() > 0)
    assert not torch.equal(mask.mask(), top_k_mask(mask.scores, mask.kept))


@pytest.mark.parametrize("method", ["edgepopup", "dense", nn.Linear, 3, None])
def test_what_is_no_method_is_refused(method):
    with pytest.raises(UserError, match="method"):
        small_network(method=method)


@pytest.mark.parametrize("method", [*METHODS])
def test_every_method_draws_its_weights_and_scores_from_the_seeds_given(method):
    k = None if method == "sampled" else 0.3  # which has no k to scale for
    network = small_network(
        method=method, weight_seed=3, score_seed=4, distribution="kaiming_normal", k=0.3, scaled=k is not None
    )
    for name, weight in frozen_weights(network).items():
        expected = draw_weights(weight.shape, "kaiming_normal", stream(3, "weights", name), scaled_for_k=k)
        assert torch.equal(weight, expected)
        expected = draw_weights(weight.shape, "default", stream(4, "scores", name))
        assert torch.equal(masks_of(network)[name].scores.detach(), expected)
