"""The networks: their weight counts, shapes and widths, torchvision's and a user's by name, and bad input."""

import pytest
import torch
from torch import nn

from hiddenweights.config import NETWORKS as NETWORK_NAMES
from hiddenweights.errors import UserError
from hiddenweights.masking.masks import kept_count
from hiddenweights.masking.supermask import masks_of, supermask, weight_layers
from hiddenweights.models import NETWORKS, build_network
from hiddenweights.models.subsampled import Subsampled, subsample_first
from hiddenweights.models.torchvision_resnet import TORCHVISION_RESNETS

CIFAR10 = {"channels": 3, "image_size": 32, "classes": 10}


def sizes(network: nn.Module) -> list[int]:
    return [getattr(owner, attribute).numel() for owner, attribute, _ in weight_layers(network)]


def without_memory(arch: str, **options) -> nn.Module:
    """The network with shapes alone: no memory is taken, nothing is drawn."""
    with torch.device("meta"):
        return build_network(arch, **options)


@pytest.mark.parametrize(
    ("arch", "weights", "layers"),
    [
        ("linear", 30_720, 1),
        ("conv2", 4_300_992, 5),
        ("conv4", 2_425_024, 7),
        ("conv6", 2_261_184, 9),
        ("conv8", 5_275_840, 11),
        ("resnet18", 11_164_352, 21),
    ],
)
def test_weight_counts_on_cifar10(arch, weights, layers):
    network = build_network(arch, **CIFAR10)
    assert sum(sizes(network)) == weights
    assert len(sizes(network)) == layers


def test_weight_count_of_fc_on_28_pixels():
    assert sizes(build_network("fc", channels=1, image_size=28, classes=10)) == [235_200, 30_000, 1_000]


@pytest.mark.parametrize(
    ("arch", "weights", "kept"),
    [
        ("resnet50", 25_502_912, 7.7e6),
        ("resnet101", 44_442_816, 13.3e6),
        ("wide_resnet50_2", 68_814_016, 20.6e6),
    ],
)
def test_weight_counts_of_the_papers_imagenet_networks(arch, weights, kept):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        network = torchvision.models.get_model(arch)
    assert sum(sizes(network)) == weights
    assert sum(kept_count(0.3, n) for n in sizes(network)) == pytest.approx(kept, abs=0.06e6)


def test_dropping_pixels_first_is_a_strided_convolution():
    ours, plain = (kind(3, 6, 1, 2, bias=False) for kind in (Subsampled, torch.nn.Conv2d))
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 9, 9)
    torch.testing.assert_close(ours(images), plain(images))


@pytest.mark.parametrize(("arch", "width", "found"), [("resnet18", 0.05, 2), ("resnet18", 0.125, 0)])
def test_only_strided_1x1_convolutions_of_few_channels_drop_pixels_first(arch, width, found):
    network = build_network(arch, **CIFAR10, width=width)
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(Subsampled) == found  # those of 3 and 6 channels


def test_a_padding_by_name_hides_no_affected_convolution():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1, 2, padding="valid"))
    subsample_first(network)
    assert type(network[0]) is Subsampled


def test_small_resnets_have_the_blocks_of_their_depth():
    """One stem, two or three convolutions a block, shortcuts where the shape changes, one classifier."""
    for arch, layers in (("resnet34", 1 + 32 + 3 + 1), ("resnet50", 1 + 48 + 4 + 1)):
        assert len(sizes(build_network(arch, **CIFAR10, width=0.0625))) == layers
    stage_counts = (3, 4, 23, 3)
    network = build_network("resnet101", **CIFAR10, width=0.0625)
    assert len(sizes(network)) == 1 + 3 * sum(stage_counts) + 4 + 1


@pytest.mark.parametrize("arch", NETWORK_NAMES)
def test_networks_map_images_to_logits_and_know_nothing_of_masks(arch):
    width = 1.0 if arch == "linear" else 0.125
    network = build_network(arch, channels=1, image_size=16, classes=7, width=width)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 7)
    assert not masks_of(network)
    layers = [owner for owner, _, _ in weight_layers(network)]
    assert all(layer.bias is None for layer in layers)


def test_the_names_that_configs_accept_are_those_that_can_be_built():
    assert set(NETWORK_NAMES) == set(NETWORKS)


@pytest.mark.parametrize("arch", ["fc", "conv2", "conv6", "resnet18", "resnet50"])
@pytest.mark.parametrize("width", [0.25, 0.3, 1.5])
def test_width_multiplies_hidden_channels_alone(arch, width):
    plain, scaled = (
        [getattr(o, a).shape for o, a, _ in weight_layers(build_network(arch, **CIFAR10, width=w))]
        for w in (1.0, width)
    )
    assert scaled[0][1] == plain[0][1]  # the input
    assert scaled[-1][0] == plain[-1][0] == 10
    bottleneck = arch == "resnet50"
    for before, after in zip(plain[:-1], scaled[:-1], strict=True):
        expected = {int(before[0] * width)} | ({4 * int(before[0] // 4 * width)} if bottleneck else set())
        assert after[0] in expected


def test_a_network_is_a_function_of_its_seed():
    def parameters(seed: int) -> list[torch.Tensor]:
        return [*build_network("conv2", **CIFAR10, width=0.125, seed=seed).parameters()]

    torch.rand(3)  # whatever the global state is
    first, again, other = parameters(1), parameters(1), parameters(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_building_leaves_batch_norms_statistics_as_they_were():
    for module in build_network("resnet18", **CIFAR10, width=0.125).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.running_mean, torch.zeros_like(module.running_mean))
            assert module.num_batches_tracked == 0


# --- torchvision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("resnet50", 32, 54),
        pytest.param("wide_resnet50_2", 32, 54, marks=pytest.mark.slow(seconds=3)),
        ("efficientnet_b0", 32, 82),
        pytest.param("alexnet", 64, 8, marks=pytest.mark.slow(seconds=3)),
        # 12 blocks of input projection, output projection and two matrices; patches and head.
        pytest.param("vit_b_16", 32, 12 * 4 + 2, marks=pytest.mark.slow(seconds=3)),
    ],
)
def test_torchvisions_networks_become_supermask_networks(name, size, layers):
    network = build_network(f"torchvision/{name}", channels=3, image_size=size, classes=10)
    supermask(network, k=0.3, distribution="unsigned_constant")
    assert len(masks_of(network)) == layers
    output = network(torch.randn(2, 3, size, size))
    assert output.shape == (2, 10)
    output.square().sum().backward()
    learnable = [p for p in network.parameters() if p.requires_grad]
    assert len(learnable) == layers
    assert all(p.grad is not None for p in learnable)


@pytest.mark.parametrize("name", TORCHVISION_RESNETS)
def test_torchvisions_resnets_scale(name):
    torchvision = pytest.importorskip("torchvision")
    network = build_network(f"torchvision/{name}", channels=3, image_size=32, classes=10, width=0.125)
    with torch.device("meta"):
        plain = torchvision.models.get_model(name, num_classes=10)
    names = [layer_name for _, _, layer_name in weight_layers(network)]
    assert names == [layer_name for _, _, layer_name in weight_layers(plain)]
    for (ours, _, _), (theirs, _, _) in zip(weight_layers(network), weight_layers(plain), strict=True):
        out, inputs = theirs.weight.shape[:2]
        assert ours.weight.shape[0] == (out if out == 10 else out // 8)
        assert ours.weight.shape[1] == (inputs if inputs == 3 else inputs // 8)


# --- a user's own ------------------------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def good(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.ReLU(), nn.LazyLinear(num_classes))\n"
        "def wrong_size(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes + 1))\n"
        "def no_module(num_classes):\n"
        "    return 'a string'\n"
        "def no_argument():\n"
        "    return nn.Flatten()\n"
        "class Fussy(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return {'logits': x} if self.training else x.flatten(1)[:, :10]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    import sys

    sys.modules.pop("my_networks", None)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.usefixtures("own_module")
class TestOwnModule:
    def test_by_import_path(self):
        network = supermask(build_network("my_networks:good", **CIFAR10))
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert [*masks_of(network)] == ["1.weight", "3.weight"]

    @pytest.mark.parametrize(
        ("path", "named"),
        [
            ("no_such_module:thing", "no_such_module"),
            ("my_networks:missing", "missing"),
            ("my_networks:no_module", "str"),
            ("my_networks:no_argument", "num_classes"),
            ("my_networks:wrong_size", r"\(2, 11\).*\(2, 10\)"),
            ("my_networks:Fussy", "training.*dict"),
        ],
    )
    def test_what_does_not_work_is_named(self, path, named):
        with pytest.raises(UserError, match=named) as caught:
            build_network(path, **CIFAR10)
        assert "model.arch" in str(caught.value)
        assert path in str(caught.value)

    def test_it_does_not_scale(self):
        with pytest.raises(UserError, match=r"model\.width"):
            build_network("my_networks:good", **CIFAR10, width=0.5)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "options", "named"),
    [
        ("conv3", {}, "conv"),
        ("torchvision/resnet51", {}, "resnet50"),
        ("conv2", {"width": 0.001}, "64 channels"),
        ("linear", {"width": 0.5}, "width"),
        ("torchvision/vgg11", {"width": 0.5}, "resnet50"),
        ("conv8", {"image_size": 8}, "8 pixels"),
        ("torchvision/alexnet", {}, "alexnet"),
        ("torchvision/vit_b_16", {"image_size": 30}, "30 pixels"),
        ("torchvision/resnet18", {"channels": 1}, "resnet18"),
    ],
)
def test_what_cannot_be_built_is_named(arch, options, named):
    with pytest.raises(UserError, match=named):
        build_network(arch, **(CIFAR10 | options))
