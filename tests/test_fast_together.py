"""All layers selected in one call: the same bits, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn

from hiddenweights.flat import unflatten
from hiddenweights.identity import resolve
from hiddenweights.images.dataset import load_dataset
from hiddenweights.masking import topk as selection
from hiddenweights.masking.masks import Mask
from hiddenweights.masking.supermask import masks_of, select_together, supermask
from hiddenweights.masking.topk import keep_largest, keep_largest_each
from hiddenweights.training.build import build_cell_network

pytestmark = pytest.mark.arithmetic


def network(method: str | type[Mask] = "edge_popup", **options) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10, bias=False)]
    return supermask(nn.Sequential(*layers), method=method, k=0.3, **options)


def outcome(model: nn.Module, low: bool = False) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        output = model(torch.randn(4, 3, 8, 8))
    if output.requires_grad:
        output.float().square().sum().backward()
    return output, [mask.scores.grad for mask in masks_of(model).values()]


def same(ours, theirs) -> bool:
    pairs = zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("method", ["edge_popup", "random", "iterand", "biprop", "sampled"])
def test_outputs_and_gradients_are_those_of_each_for_itself(method, low):
    together = network(method, distribution="kaiming_normal")
    alone = copy.deepcopy(together)
    select_together(together)
    assert same(outcome(together, low), outcome(alone, low))


def test_a_step_calls_once_for_all_layers(monkeypatch):
    calls = []
    usual = selection._StraightThrough.apply
    monkeypatch.setattr(selection._StraightThrough, "apply", lambda *args: (calls.append(1), usual(*args))[1])
    model = network()
    select_together(model)
    model(torch.randn(4, 3, 8, 8))
    assert len(calls) == 1


def test_cells_use_it():
    config = resolve(unflatten({"model.arch": "conv2", "model.width": 0.1}))
    model = build_cell_network(config, load_dataset(config.data))
    held = []
    model[0].register_forward_hook(lambda *_: held.extend(m.effective for m in masks_of(model).values()))
    model(torch.randn(2, 1, 8, 8))
    assert [weight.shape for weight in held] == [mask.scores.shape for mask in masks_of(model).values()]


def test_nothing_is_held_after_a_pass_or_a_failed_one():
    model = network()
    select_together(model)
    model(torch.randn(4, 3, 8, 8))
    with pytest.raises(RuntimeError):
        model(torch.randn(4, 3, 9, 9))
    assert all(mask.effective is None for mask in masks_of(model).values())
    with torch.no_grad():
        before = model[0].weight
        masks_of(model)["0.weight"].scores.mul_(torch.rand(8, 3, 3, 3))
        assert not torch.equal(model[0].weight, before)


def test_copies_select_for_themselves():
    model = network()
    select_together(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for mask in masks_of(twin).values():
            mask.scores.copy_(torch.randn(mask.scores.shape))
    assert same(outcome(twin), outcome(copy.deepcopy(twin)))
    assert not same(outcome(twin), outcome(model))


def test_a_compiled_pass_is_whole_and_equal():
    model = network()
    select_together(model)
    images = torch.randn(4, 3, 8, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(images), model(images))


def test_other_masks_are_left_alone():
    class Own(Mask):
        pass

    for model in (network(Own), network(selection="global"), nn.Linear(3, 3)):
        hooks = len(model._forward_pre_hooks)
        select_together(model)
        assert len(model._forward_pre_hooks) == hooks


def test_each_is_the_layers_one_by_one():
    shapes, kept = [(5,), (20, 30), (4, 3, 3, 3)], [1, 200, 108]
    dtypes = [torch.float32, torch.bfloat16, torch.float32]
    values = [torch.randn(shape) for shape in shapes]
    scores = [torch.randn(shape) for shape in shapes]
    tracked = [[score.clone().requires_grad_() for score in scores] for _ in range(2)]
    each = keep_largest_each(values, tracked[0], kept, dtypes)
    single = [keep_largest(*layer) for layer in zip(values, tracked[1], kept, dtypes, strict=True)]
    for results in (each, single):
        (2 * results[0].sum() + results[2].square().sum()).backward()  # the second layer goes unused
    assert all(torch.equal(a, b) for a, b in zip(each, single, strict=True))
    for ours, theirs in zip(*tracked, strict=True):
        assert torch.equal(ours.grad, torch.zeros_like(ours) if theirs.grad is None else theirs.grad)
