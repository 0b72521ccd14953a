"""`supermask` on any module: what it freezes and masks, and that the rest of PyTorch works on the result."""

import copy
import datetime
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, prune

from hiddenweights import supermask
from hiddenweights.errors import UserError
from hiddenweights.masking.masks import METHODS
from hiddenweights.masking.supermask import current_masks, frozen_weights, masks_of, weight_layers
from hiddenweights.models import build_network

METHOD_NAMES = [*METHODS]
METHODS_AND_SELECTIONS = [
    (method, selection)
    for method, mask in METHODS.items()
    for selection in ("layer", "global")
    if selection == "layer" or mask.selects_globally
]


class Everything(nn.Module):
    """Each kind of layer that can be masked, and some that cannot. (batch, 4, 8) -> (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(4, 8, 3, padding=1)
        self.conv2d = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(12)
        self.conv3d = nn.Conv3d(12, 16, (1, 1, 3), padding=(0, 0, 1), bias=False)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(16)
        self.token = nn.Parameter(torch.ones(1, 1, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1d(x)[:, :, None]
        x = torch.relu(self.norm(self.conv2d(x)))
        x = torch.relu(self.conv3d(x[:, :, None])).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = self.layer_norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x[:, 0])


NAMES = [
    "conv1d.weight",
    "conv2d.weight",
    "conv3d.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "head.weight",
]
BIASES = ["conv1d.bias", "conv2d.bias", "attention.in_proj_bias", "attention.out_proj.bias", "head.bias"]


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))


def small_conv(**options) -> nn.Module:
    return supermask(build_network("conv2", channels=3, image_size=8, classes=10, width=0.125), **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# --- what is masked, what is frozen ------------------------------------------------------------------------


def test_every_kind_of_layer_is_masked_and_only_scores_are_left_to_learn(inputs):
    network = supermask(Everything(), k=0.5)
    assert [*masks_of(network)] == NAMES
    learnable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(learnable) == len(NAMES)
    assert all(name.endswith(".scores") for name in learnable)
    network(inputs).square().sum().backward()
    for name, mask in masks_of(network).items():
        assert mask.scores.grad.abs().sum() > 0, name
    for mask in current_masks(network).values():
        assert mask.sum() == max(1, round(0.5 * mask.numel()))
    assert all(weight.grad is None for weight in frozen_weights(network).values())


@pytest.mark.parametrize("biases", ["zero", "frozen", "trained"])
@pytest.mark.parametrize("norms", ["unit", "trained"])
def test_biases_and_norms_are_treated_as_asked(biases, norms):
    plain = Everything()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.rand(parameter.shape))
    before = {name: p.clone() for name, p in plain.named_parameters()}
    network = supermask(plain, biases=biases, norms=norms)
    parameters = dict(network.named_parameters())
    for name in BIASES:
        assert parameters[name].requires_grad == (biases == "trained")
        expected = torch.zeros_like(before[name]) if biases == "zero" else before[name]
        assert torch.equal(parameters[name], expected)
    for norm in ("norm", "layer_norm"):
        for name, value in ((f"{norm}.weight", 1.0), (f"{norm}.bias", 0.0)):
            assert parameters[name].requires_grad == (norms == "trained")
            expected = torch.full_like(before[name], value) if norms == "unit" else before[name]
            assert torch.equal(parameters[name], expected)
    assert not parameters["token"].requires_grad
    assert torch.equal(parameters["token"], before["token"])


def test_without_a_distribution_the_models_own_weights_stay():
    model = Everything()
    before = {name: getattr(owner, attribute).clone() for owner, attribute, name in weight_layers(model)}
    network = supermask(model, distribution=None)
    for name, weight in frozen_weights(network).items():
        assert torch.equal(weight, before[name])


def test_adding_a_layer_changes_no_other_layers_draws():
    small = supermask(nn.Sequential(nn.Linear(4, 5)))
    large = supermask(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)))
    assert torch.equal(frozen_weights(small)["0.weight"], frozen_weights(large)["0.weight"])
    assert torch.equal(masks_of(small)["0.weight"].scores, masks_of(large)["0.weight"].scores)


def test_the_two_seeds_decide_weights_and_scores_apart():
    base, weights, scores = (
        small_conv(weight_seed=w, score_seed=s) for w, s in ((0, 0), (1, 0), (0, 1))
    )  # fmt: skip
    for name in masks_of(base):
        assert torch.equal(masks_of(base)[name].scores, masks_of(weights)[name].scores)
        assert not torch.equal(frozen_weights(base)[name], frozen_weights(weights)[name])
        assert torch.equal(frozen_weights(base)[name], frozen_weights(scores)[name])
        assert not torch.equal(masks_of(base)[name].scores, masks_of(scores)[name].scores)


def test_torchs_global_random_state_is_neither_used_nor_moved():
    model = nn.Linear(3, 3)
    state = torch.get_rng_state()
    supermask(model)
    build_network("conv2", channels=3, image_size=8, classes=10)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_weights_stay_bit_identical_under_an_optimiser_of_all_parameters(method, images):
    """With weight decay and momentum, which would move anything that the optimiser holds."""
    network = small_conv(method=method, distribution="kaiming_normal")
    before = {name: weight.clone() for name, weight in frozen_weights(network).items()}
    learnable = [p for p in network.parameters() if p.requires_grad]
    if method == "random":
        assert learnable == []
        return
    assert {id(p) for p in learnable} == {id(mask.scores) for mask in masks_of(network).values()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
    for name, weight in frozen_weights(network).items():
        assert torch.equal(weight, before[name])


# --- the rest of PyTorch -----------------------------------------------------------------------------------


def compare_compiled(network: nn.Module, backend: str, inputs: torch.Tensor) -> None:
    """Outputs and gradients of the network and of its compiled copy."""
    twin = copy.deepcopy(network)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    outputs = []
    for called in (network, compiled):
        torch.manual_seed(0)
        outputs.append(called(inputs))
        if outputs[-1].requires_grad:
            outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    for ours, theirs in zip(masks_of(twin).values(), masks_of(network).values(), strict=True):
        torch.testing.assert_close(ours.scores.grad, theirs.scores.grad)


@pytest.mark.parametrize(("method", "selection"), METHODS_AND_SELECTIONS)
def test_compiles_without_a_graph_break(method, selection, images):
    network = small_conv(method=method, selection=selection, distribution="kaiming_normal")
    compare_compiled(network, "eager", images)


@pytest.mark.parametrize("selection", ["layer", "global"])
def test_compiles_ahead_of_time_with_its_gradient(selection, images):
    """The compiler's own autograd, with which the default backend works, too."""
    network = small_conv(selection=selection, distribution="kaiming_normal")
    compare_compiled(network, "aot_eager", images)


def test_compiles_every_kind_of_layer_without_a_graph_break(inputs):
    compare_compiled(supermask(Everything(), distribution="kaiming_normal"), "eager", inputs)


@pytest.mark.slow(seconds=3)
def test_compiles_a_network_of_torchvision_without_a_graph_break():
    network = build_network("torchvision/resnet18", channels=3, image_size=32, classes=10)
    compare_compiled(supermask(network).eval(), "eager", torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_deep_copy_is_equal_and_independent(method, inputs):
    network = supermask(Everything(), method=method).eval()
    twin = copy.deepcopy(network)
    torch.manual_seed(0)
    expected = network(inputs)
    torch.manual_seed(0)
    assert torch.equal(twin(inputs), expected)
    with torch.no_grad():
        masks_of(twin)["head.weight"].scores.neg_().add_(1)
    torch.manual_seed(0)
    assert torch.equal(network(inputs), expected)


@pytest.mark.parametrize("selection", ["layer", "global"])
def test_the_state_dict_carries_all_that_a_network_is(selection, inputs, tmp_path):
    network = supermask(Everything(), selection=selection, weight_seed=1, score_seed=1)
    network(inputs)  # moves BatchNorm's statistics
    torch.save(network.state_dict(), tmp_path / "state.pt")
    other = supermask(Everything(), selection=selection)
    assert not torch.equal(other.eval()(inputs), network.eval()(inputs))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(inputs), network(inputs))
    for ours, theirs in zip(current_masks(other).values(), current_masks(network).values(), strict=True):
        assert torch.equal(ours, theirs)


def parametrized(network: nn.Module) -> list[tuple[nn.Module, str]]:
    owners = (module for module in network.modules() if parametrize.is_parametrized(module))
    return [(owner, attribute) for owner in owners for attribute in owner.parametrizations]


def test_removing_the_parametrizations_leaves_a_plain_network_with_the_effective_weights(inputs):
    network = supermask(Everything()).eval()
    expected, names = network(inputs).detach(), [*masks_of(network)]
    effective = [getattr(owner, attribute).detach().clone() for owner, attribute in parametrized(network)]
    for owner, attribute in (left := parametrized(network)):
        parametrize.remove_parametrizations(owner, attribute)
    for (owner, attribute), weight in zip(left, effective, strict=True):
        assert torch.equal(getattr(owner, attribute), weight)
    assert [name for _, _, name in weight_layers(network)] == names
    torch.testing.assert_close(network(inputs), expected)
    assert not masks_of(network)


@pytest.mark.parametrize("selection", ["layer", "global"])
def test_channels_last_changes_neither_masks_nor_results(selection, images):
    network = small_conv(selection=selection)
    twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
    assert twin[0].weight.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(current_masks(twin).values(), current_masks(network).values(), strict=True):
        assert torch.equal(ours, theirs)
    output = twin(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, network(images))
    output.square().sum().backward()
    network(images).square().sum().backward()
    for ours, theirs in zip(masks_of(twin).values(), masks_of(network).values(), strict=True):
        torch.testing.assert_close(ours.scores.grad, theirs.scores.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_autocast_leaves_scores_and_selection_in_single_precision(method, images):
    network = small_conv(method=method, distribution="kaiming_normal")
    masks = current_masks(network)
    torch.manual_seed(0)
    expected = network(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images)
        if method != "sampled":
            for name, mask in current_masks(network).items():
                assert torch.equal(mask, masks[name])
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    if method != "random":
        output.float().square().sum().backward()
        assert all(mask.scores.grad.dtype == torch.float32 for mask in masks_of(network).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("method", "selection"), METHODS_AND_SELECTIONS)
def test_a_model_of_another_precision_keeps_it_with_scores_in_single(method, selection, dtype):
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)).to(dtype)
    network = supermask(model, method=method, selection=selection, k=0.4)
    assert network[0].weight.dtype == dtype
    assert {mask.scores.dtype for mask in masks_of(network).values()} == {torch.float32}
    output = network(torch.ones(2, 6, dtype=dtype))
    assert output.dtype == dtype
    if method != "random":
        output.sum().backward()
        assert {mask.scores.grad.dtype for mask in masks_of(network).values()} == {torch.float32}


@pytest.mark.parametrize("method", [m for m in METHOD_NAMES if m not in ("random", "sampled")])
@pytest.mark.parametrize("selection", ["layer", "global"])
def test_functional_call_and_its_gradient(method, selection, images):
    network = small_conv(method=method, selection=selection, distribution="kaiming_normal")
    other = small_conv(method=method, selection=selection, distribution="kaiming_normal", score_seed=1)
    tensors = {name: p.detach().clone() for name, p in other.named_parameters()}
    assert torch.equal(torch.func.functional_call(network, tensors, (images,)), other(images))

    def loss(scores):
        return torch.func.functional_call(network, tensors | scores, (images,)).square().sum()

    names = [name for name in tensors if name.endswith("scores")]
    gradients = torch.func.grad(loss)({name: tensors[name] for name in names})
    other(images).square().sum().backward()
    for name, parameter in other.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad)


def test_attention_gives_the_same_in_training_and_on_the_fast_path_of_evaluation():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = supermask(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), k=0.3)
    assert len(masks_of(encoder)) == 8
    x = torch.randn(3, 7, 16)
    expected = encoder.train()(x)
    encoder.eval()
    torch.testing.assert_close(encoder(x), expected)
    with torch.no_grad():  # here PyTorch takes its fused path
        torch.testing.assert_close(encoder(x), expected)
        attention = encoder.layers[0].self_attn
        torch.testing.assert_close(
            attention(x, x, x, need_weights=False)[0], attention.train()(x, x, x, need_weights=False)[0]
        )


def test_attention_with_projections_apart():
    attention = supermask(nn.MultiheadAttention(16, 2, kdim=6, vdim=10, batch_first=True), k=0.3)
    assert [*masks_of(attention)] == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    q, k, v = torch.randn(2, 3, 16), torch.randn(2, 5, 6), torch.randn(2, 5, 10)
    output = attention(q, k, v)[0]
    output.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(attention.eval()(q, k, v)[0], output)


# --- several processes -------------------------------------------------------------------------------------


def learn_together(rank: int, folder: str) -> None:
    """Be one of two processes that learn together, and leave the scores and masks in `folder`."""
    meeting, patience = f"file://{folder}/meet", datetime.timedelta(seconds=100)
    distributed.init_process_group("gloo", meeting, timeout=patience, rank=rank, world_size=2)
    try:
        for selection in ("layer", "global"):
            inner = small_conv(selection=selection)
            three_steps(DistributedDataParallel(inner), images_for_all()[rank::2])
            scores = {name: mask.scores.detach() for name, mask in masks_of(inner).items()}
            torch.save({"scores": scores, "masks": current_masks(inner)}, f"{folder}/{selection}{rank}.pt")
    finally:
        distributed.destroy_process_group()


OTHER = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from test_supermask import learn_together
torch.set_num_threads(1)
learn_together(1, sys.argv[1])
"""


def images_for_all() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def three_steps(network: nn.Module, images: torch.Tensor) -> None:
    learnable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnable, lr=1.0, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()


@pytest.mark.slow(seconds=5)
def test_data_parallel_processes_learn_what_one_process_learns(tmp_path):
    command = [sys.executable, "-c", OTHER, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command) as other:
        learn_together(0, str(tmp_path))
        assert other.wait(timeout=200) == 0
    for selection in ("layer", "global"):
        network = small_conv(selection=selection)
        before = current_masks(network)
        three_steps(network, images_for_all())
        results = [torch.load(tmp_path / f"{selection}{rank}.pt", weights_only=True) for rank in range(2)]
        for name, mask in masks_of(network).items():
            for what in ("scores", "masks"):
                assert torch.equal(results[0][what][name], results[1][what][name])
            torch.testing.assert_close(results[0]["scores"][name], mask.scores.detach(), rtol=1e-4, atol=1e-5)
        assert any(not torch.equal(mask, before[name]) for name, mask in results[0]["masks"].items())


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -0.1, 1.1, float("nan")])
def test_k_outside_its_range_is_refused(k):
    with pytest.raises(UserError, match="k:"):
        supermask(nn.Linear(2, 2), k=k)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"distribution": "normal"}, "distribution"),
        ({"selection": "network"}, "selection"),
        ({"biases": "none"}, "biases"),
        ({"norms": "affine"}, "norms"),
        ({"method": "sampled", "selection": "global"}, "selection"),
        ({"method": "sampled", "scaled": True}, "scaled"),
        ({"distribution": None, "scaled": True}, "scaled"),
    ],
)
def test_unknown_choices_and_combinations_without_meaning_are_refused(options, name):
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(UserError, match=name):
        supermask(model, **options)
    assert torch.equal(model.weight, before)
    assert model.weight.requires_grad  # nothing was done before the refusal


def test_a_model_without_weights_to_mask_is_named():
    with pytest.raises(UserError, match="BatchNorm2d"):
        supermask(nn.BatchNorm2d(3))


def test_a_masked_network_is_not_masked_again():
    with pytest.raises(UserError, match="parametrized already"):
        supermask(supermask(nn.Sequential(nn.Linear(2, 2))))


def test_shared_weights_are_refused_and_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(UserError, match=r"0\.weight.*1\.weight"):
        supermask(model)


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.out.weight = self.embed.weight


def test_a_weight_shared_with_an_embedding_is_refused_and_named():
    with pytest.raises(UserError, match=r"out\.weight.*embed\.weight"):
        supermask(TiedEmbedding())


def test_a_computed_weight_is_refused_before_anything_is_changed():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    prune.random_unstructured(model[1], "weight", amount=0.5)
    before = model[0].weight.clone()
    with pytest.raises(UserError, match=r"1\.weight.*computed"):
        supermask(model)
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.requires_grad


def test_scores_of_half_precision_are_refused():
    network = supermask(nn.Sequential(nn.Linear(3, 3))).to(torch.bfloat16)
    with pytest.raises(UserError, match=r"bfloat16.*autocast"):
        network(torch.ones(1, 3, dtype=torch.bfloat16))


def test_a_module_used_twice_has_one_mask():
    layer = nn.Linear(3, 3)
    assert [*masks_of(supermask(nn.Sequential(layer, nn.ReLU(), layer)))] == ["0.weight"]


def test_uninitialised_lazy_layers_are_named():
    with pytest.raises(UserError, match=r"0\.weight"):
        supermask(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_elements_is_named(sizes):
    with pytest.raises(UserError, match=r"0\.weight"):
        supermask(nn.Sequential(nn.Linear(*sizes)))


def test_layers_that_keep_one_weight_are_named_in_one_warning():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 100), nn.Linear(100, 2), nn.Linear(1, 1))
    with pytest.warns(UserWarning, match=r"0\.weight, 2\.weight") as caught:
        network = supermask(model, k=0.005)
    assert len(caught) == 1
    assert "1.weight" not in str(caught[0].message)
    assert "3.weight" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert [int(mask.sum()) for mask in current_masks(network).values()] == [1, 2, 1, 1]


# --- recurrent layers, and what has no mask ----------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent layer over the rows of images, then a linear one."""

    def __init__(self, kind: type[nn.RNNBase], **options):
        super().__init__()
        self.rows = kind(8, 16, batch_first=True, **options)
        self.head = nn.LazyLinear(10)
        self(torch.zeros(1, 8, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(images)[0].mean(1))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.RNN, {}),
        (nn.GRU, {"num_layers": 2}),
        (nn.LSTM, {"bidirectional": True}),
    ],
    ids=["rnn", "gru", "lstm"],
)
@pytest.mark.parametrize("method", ["edge_popup", "sampled", "biprop"])
def test_recurrent_layers_are_masked_and_learn(kind, options, method):
    network = supermask(Recurrent(kind, **options), method=method, distribution="kaiming_normal", k=0.3)
    recurrent = {name for name, _ in kind(8, 16, **options).named_parameters() if "weight" in name}
    assert {*masks_of(network)} == {*(f"rows.{name}" for name in recurrent), "head.weight"}
    images = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        network.train(training)
        torch.manual_seed(1)
        output = network(images)
        output.square().sum().backward()
    for mask in masks_of(network).values():
        assert mask.scores.grad is not None
        assert mask.scores.grad.any()
    if method == "sampled":
        return
    with torch.no_grad():
        plain = Recurrent(kind, **options)
        effective = {
            name: dict(network.named_modules())[name.rpartition(".")[0]] for name in masks_of(network)
        }
        state = {name: getattr(owner, name.rpartition(".")[2]) for name, owner in effective.items()}
        plain.load_state_dict({**{n: torch.zeros_like(p) for n, p in plain.named_parameters()}, **state})
        torch.testing.assert_close(plain(images), output)
        copied = copy.deepcopy(network)
        masks_of(copied)["rows.weight_hh_l0"].scores.neg_().sub_(1)
        assert not torch.equal(copied(images), network(images))
        torch.testing.assert_close(network(images), output)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_recurrent_cells_are_masked(cell):
    assert {*masks_of(supermask(cell(8, 16)))} == {"weight_ih", "weight_hh"}


def test_a_network_of_which_a_tenth_has_no_mask_says_so_once():
    large = nn.Sequential(nn.Embedding(1000, 8), nn.Flatten(), nn.Linear(8, 10))
    with pytest.warns(UserWarning, match=r"only 1\.0%.*0 \(Embedding\)") as caught:
        supermask(large)
    assert len(caught) == 1
    supermask(
        nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(8, 1000))
    )  # no warning, which would raise
