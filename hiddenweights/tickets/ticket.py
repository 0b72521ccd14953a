"""A found subnetwork as a file: the seed of its weights and one bit a weight (docs/ticket.md).

What a ticket holds: the cell's config, each layer's mask in Rice's code, the buffers and other values
that evaluation needs, checksums, the last record, versions. Reading one executes nothing and takes
memory in proportion to the network it names; whatever is wrong with a file raises `UserError`.
"""

import hashlib
import json
import math
import os
import platform
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from hiddenweights.config import CellConfig, DataConfig, flatten, from_dict, resolve, to_dict
from hiddenweights.errors import UserError, shown
from hiddenweights.masking.masks import METHODS, Biprop, Mask, kept_count
from hiddenweights.masking.rng import permutation, stream
from hiddenweights.masking.supermask import set_weights, weight_layers
from hiddenweights.models import build_network
from hiddenweights.tickets.rice import decode_mask, encode_mask
from hiddenweights.training.data import Dataset, load_dataset
from hiddenweights.training.train import Arithmetic, Record, Trainer, checksum
from hiddenweights.versions import versions

FORMAT = 1
MAGIC = b"\x93ticket\n"
# Limits of what is read at all; the largest network of torchvision has 6.4e8 weights.
MAX_BYTES = 2**30
MAX_WEIGHTS = 2**30
BYTES_A_WEIGHT = 32  # at most, while weights are drawn and masks are made
MAX_SIDES = 8  # of a weight's shape

_DIGEST_BYTES = 32
_TIMES = ("seconds", "images_per_second")  # left out, so that a cell's ticket is the same in every run


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the network takes and gives: (pixel / 255 - mean) / std by channel, to logits of classes."""

    channels: int
    image_size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def check(self, dataset: Dataset) -> None:
        """Raise `UserError` where the network cannot take these images, or has other classes."""
        found = (dataset.channels, dataset.image_size, dataset.classes)
        if found != (self.channels, self.image_size, self.classes):
            raise UserError(
                f"data: has {found[0]} channels, {found[1]} pixels and {found[2]} classes; the ticket's"
                f" network takes {self.channels}, {self.image_size} and {self.classes}"
            )


@dataclass(frozen=True, slots=True)
class Ticket:
    """A found subnetwork. `masks` and `state` are on the CPU, by the names of the plain network."""

    config: CellConfig
    inputs: Inputs
    masks: dict[str, Tensor]
    """Bool, each of its weight's shape."""
    gains: dict[str, Tensor]
    """For `biprop`: the magnitude of each layer's weights, float32 (); else empty."""
    state: dict[str, Tensor]
    """Everything of the state dict but the masked weights. () stands for a tensor of one value."""
    weights_checksum: str
    record: Record
    """The last epoch's record, without times and layers."""
    versions: dict[str, str]

    @classmethod
    def of(cls, trainer: Trainer, record: Mapping[str, float | int | str]) -> "Ticket":
        """The ticket of `trainer`'s network as it stands after the epoch of `record`, its last one.

        A `sampled` network has no mask of its own, but a chance of each weight: its ticket holds the draw
        whose checksum the record states. Raises `UserError` for methods whose weights are not the seed's
        (`dense`, `finetune`, `iterand`), `ValueError` for a record that is not that of the network.
        """
        config = trainer.config
        if not has_ticket(config):
            raise UserError(
                f"model.method: {config.model.method!r} changes the weights, and a ticket holds only"
                " a mask over those of the seed"
            )
        masks = {name: mask.cpu() for name, mask in trainer.masks_after(int(record["epoch"])).items()}
        packed = {name: np.packbits(mask.numpy()) for name, mask in masks.items()}
        if checksum(packed) != record["mask_checksum"]:
            raise ValueError(f"the record of epoch {record['epoch']} is not that of the network as it stands")
        plain = trainer.network.state_dict()
        if wrong := [name for name, value in plain.items() if not isinstance(value, Tensor)]:
            raise UserError(f"model.arch: {wrong[0]!r} of the state dict is no tensor, which a ticket needs")
        dataset = load_dataset(config.data)
        return cls(
            config=replace(config, data=replace(config.data, root=DataConfig().root)),
            inputs=Inputs(dataset.channels, dataset.image_size, dataset.classes, dataset.mean, dataset.std),
            masks=masks,
            gains=_gains(trainer.network) if config.model.method == "biprop" else {},
            state={
                name: _compact(tensor.detach().cpu())
                for name, tensor in plain.items()
                if "parametrizations" not in name.split(".")
            },
            weights_checksum=str(record["weights_checksum"]),
            record={name: value for name, value in record.items() if "/" not in name and name not in _TIMES},
            versions=versions("hiddenweights", "torch", "numpy") | {"machine": platform.machine()},
        )

    @property
    def precision(self) -> Arithmetic:
        """The arithmetic of training, in which the network gives the logits of its end."""
        used = self.record.get("precision", self.config.train.precision)
        return "bfloat16" if used == "bfloat16" else "float32"

    def to_bytes(self) -> bytes:
        """The ticket as a file's content."""
        layers: dict[str, dict[str, Any]] = {}
        tensors = {f"state/{name}": tensor for name, tensor in self.state.items()}
        tensors |= {f"gain/{name}": gain for name, gain in self.gains.items()}
        for name, mask in self.masks.items():
            code, r = encode_mask(mask.numpy().ravel())
            layers[name] = {"shape": list(mask.shape), "kept": int(mask.sum()), "rice": r}
            tensors[f"mask/{name}"] = torch.from_numpy(np.frombuffer(code, np.uint8).copy())
        header = {
            "format": FORMAT,
            "config": to_dict(self.config),
            "inputs": asdict(self.inputs),
            "layers": layers,
            "weights_checksum": self.weights_checksum,
            "record": self.record,
            "versions": self.versions,
        }
        body: bytes = safetensors.torch.save(tensors, {"ticket": json.dumps(header)})
        return MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, content: bytes, source: str = "ticket") -> "Ticket":
        """The inverse of `to_bytes`. Raises `UserError`, with `source` named, for anything else."""
        if not content.startswith(MAGIC):
            raise UserError(f"{source}: is not a ticket")
        start = len(MAGIC) + _DIGEST_BYTES
        body = content[start:]
        if hashlib.sha256(body).digest() != content[len(MAGIC) : start]:
            raise UserError(f"{source}: is damaged; its checksum does not match")
        try:
            tensors = safetensors.torch.load(body)
            metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
            return _parse(json.loads(metadata["ticket"]), tensors)
        except UserError as error:
            raise UserError(f"{source}: {shown(error)}") from error
        except (
            SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            raise UserError(f"{source}: holds no ticket: {shown(_first_line(error))}") from error

    def shuffled(self, seed: int) -> "Ticket":
        """The ticket with as many weights of each layer kept, at random places that `seed` decides."""
        masks = {}
        for name, mask in self.masks.items():
            order = torch.from_numpy(permutation(stream(seed, "shuffle", name), mask.numel()))
            masks[name] = mask.flatten()[order].view(mask.shape)
        return replace(self, masks=masks)

    def weights(self) -> dict[str, Tensor]:
        """The random weights behind the masks, drawn from the seed: float32, by name.

        Raises `UserError` where they are not those of training, bit for bit.
        """
        model = self.config.model
        assert model.distribution is not None  # a ticket's config is resolved
        weights = {}
        for name, mask in self.masks.items():
            weight = nn.Parameter(torch.empty(mask.shape), requires_grad=False)
            scaled_for_k = model.k if model.scaled else None
            set_weights(weight, name, model.distribution, self.config.seed_of("weights"), scaled_for_k)
            weights[name] = weight.data
        if checksum({name: weight.numpy() for name, weight in weights.items()}) != self.weights_checksum:
            made = ", ".join(f"{name} {value}" for name, value in self.versions.items())
            raise UserError(
                f"the weights that seed {self.config.seed_of('weights')} gives here are not those of"
                f" training ({made}). Normal weights round as the platform's log, cos and sin do;"
                " all other distributions are the same everywhere"
            )
        return weights

    def network(self, arch: str | None = None) -> nn.Module:
        """The subnetwork as a plain network on the CPU, in evaluation mode: unkept weights are zero.

        `arch` is the network's constructor, ``module:callable``, needed where the ticket names one:
        it is code, which no ticket can run by itself. Raises `UserError` where the network does not fit
        the ticket, or its weights are not those of training.
        """
        network = self._plain(arch)
        expected = network.state_dict()
        names = {name for _, _, name in weight_layers(network)}
        _same_tensors(
            {name: (expected[name].shape, torch.bool) for name in names},
            {name: (mask.shape, mask.dtype) for name, mask in self.masks.items()},
        )
        _same_tensors(
            {name: (t.shape, t.dtype) for name, t in expected.items() if name not in names},
            {
                name: (expected[name].shape if name in expected and t.ndim == 0 else t.shape, t.dtype)
                for name, t in self.state.items()
            },
        )
        state = {name: t.expand(expected[name].shape).clone() for name, t in self.state.items()}
        for name, weight in self.weights().items():
            gain = self.gains.get(name)
            state[name] = weight if gain is None else gain * weight.sign()
        network.load_state_dict(state, assign=True)
        # As in training, where the product with the mask is of weights in this format, and decides how a
        # 1x1 kernel lies: the order in which a convolution sums, and so its last bits, depend on both.
        network.to(memory_format=torch.channels_last)
        for owner, attribute, name in weight_layers(network):
            weight = getattr(owner, attribute)
            weight.data = weight.data * self.masks[name]
        return network.eval()

    def _plain(self, arch: str | None) -> nn.Module:
        """The network without values (on torch's meta device), where its constructor can do without."""
        model, inputs = self.config.model, self.inputs
        if (own := ":" in model.arch) != (arch is not None):
            hint = f"needs your code: arch={model.arch!r}" if own else f"takes no arch, but got {arch!r}"
            raise UserError(f"model.arch: the ticket of {model.arch!r} {hint}")
        regnet = model.arch.startswith("torchvision/regnet")
        with _EmptyOnMeta() if regnet else torch.device("cpu" if own else "meta"):
            try:
                return build_network(
                    arch or model.arch,
                    channels=inputs.channels,
                    image_size=inputs.image_size,
                    classes=inputs.classes,
                    width=model.width,
                    seed=self.config.seed_of("weights"),
                )
            except UserError as error:
                raise UserError(_first_line(error)) from error
            except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond torch's
                raise UserError(f"model.arch: {model.arch!r} cannot be built: {_first_line(error)}") from None


class _EmptyOnMeta(TorchFunctionMode):
    """Puts parameters and buffers on torch's meta device, and nothing else: RegNets compute their shapes
    with tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func in (torch.empty, torch.zeros, torch.ones)
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if made else {}))


def has_ticket(config: CellConfig) -> bool:
    """Whether the method leaves the weights as the seed draws them, so that a mask says it all."""
    method = config.model.method
    return method in METHODS and not METHODS[method].redraws


def save_ticket(path: str | Path, trainer: Trainer, record: Mapping[str, float | int | str]) -> None:
    """Write the ticket of `trainer`'s network, whose last record is `record` (see `Ticket.of`)."""
    path = Path(path)
    content = Ticket.of(trainer, record).to_bytes()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_ticket(path: str | Path) -> Ticket:
    """The ticket at `path`. Raises `UserError` where there is none, or what is there is not intact."""
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"{path}: is not a file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is larger than any ticket ({MAX_BYTES} bytes)")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return Ticket.from_bytes(content, str(path))


def load_ticket(
    path: str | Path, *, device: str | torch.device = "cpu", arch: str | None = None
) -> nn.Module:
    """The subnetwork at `path`, ready to evaluate: a plain network on `device`, unkept weights zero.

    Takes float32 (batch, channels, size, size), normalised as `read_ticket(path).inputs` says, and gives
    the logits (batch, classes) of the end of training: bit for bit on the same kind of machine with as
    many threads, and under autocast where the ticket's `precision` is bfloat16. `arch` and errors:
    `Ticket.network`.
    """
    ticket = read_ticket(path)
    try:
        return ticket.network(arch).to(device)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# --- the file's parts ------------------------------------------------------------------------------------


def _parse(header: Any, tensors: dict[str, Tensor]) -> Ticket:
    if type(header["format"]) is not int or header["format"] != FORMAT:
        raise UserError(f"has format {header['format']!r:.40}; this version reads format {FORMAT}")
    layers = {_text(name): layer for name, layer in header["layers"].items()}
    shapes = {name: [_count(side) for side in layer["shape"]] for name, layer in layers.items()}
    # Before any arithmetic: a file may name integers of any length.
    if any(len(shape) > MAX_SIDES or any(side > MAX_WEIGHTS for side in shape) for shape in shapes.values()):
        raise UserError(f"asks for more weights than are read ({MAX_WEIGHTS})")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if sum(sizes.values()) > MAX_WEIGHTS:
        raise UserError(f"asks for more weights than are read ({MAX_WEIGHTS})")
    _check_memory(sum(sizes.values()))
    parts: dict[str, dict[str, Tensor]] = {"mask": {}, "gain": {}, "state": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    config = resolve(from_dict(header["config"]))
    if not has_ticket(config):
        raise UserError(f"model.method: {config.model.method!r} has no tickets")
    for value in flatten(config).values():
        if isinstance(value, str):
            _text(value)
    gained = shapes if METHODS[config.model.method] is Biprop else {}
    _same_tensors(
        {name: (torch.Size(), torch.float32) for name in gained},
        {name: (gain.shape, gain.dtype) for name, gain in parts["gain"].items()},
    )
    if parts["mask"].keys() != layers.keys():
        raise ValueError("masks and layers differ")
    counts = {name: _count(layer["kept"], 0) for name, layer in layers.items()}
    _check_counts(config, sizes, counts)
    masks = {}
    for name, layer in layers.items():
        if parts["mask"][name].dtype != torch.uint8:
            raise ValueError("a mask's code is not of bytes")
        code = parts["mask"][name].numpy().tobytes()
        mask = decode_mask(code, sizes[name], counts[name], _count(layer["rice"], 0))
        masks[name] = torch.from_numpy(mask).view(shapes[name])
    return Ticket(
        config=config,
        inputs=_inputs(header["inputs"]),
        masks=masks,
        gains=parts["gain"],
        state=parts["state"],
        weights_checksum=_text(header["weights_checksum"]),
        record=_record(header["record"]),
        versions={_text(name): _text(value) for name, value in header["versions"].items()},
    )


def _check_memory(weights: int) -> None:
    """Raise `UserError` where so many weights do not fit: a mask of few or of all takes no room in a file."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not say
        return
    if (needed := BYTES_A_WEIGHT * weights) > memory / 2:
        raise UserError(
            f"names a network of {weights} weights, which takes up to {needed / 2**30:.1f} GiB, more than"
            f" half of this machine's {memory / 2**30:.1f}"
        )


def _check_counts(config: CellConfig, sizes: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Raise `UserError` where the masks do not keep the fraction k that the config says."""
    k = config.model.k
    if k is None:  # sampled: any fraction
        return
    if config.model.selection == "global":
        sizes, counts = {"all layers": sum(sizes.values())}, {"all layers": sum(counts.values())}
    for name, n in sizes.items():
        if counts[name] != kept_count(k, n):
            raise UserError(f"{name}: keeps {counts[name]} of {n} weights, but model.k is {k}")


def _inputs(data: Any) -> Inputs:
    channels, image_size, classes = (_count(data[name]) for name in ("channels", "image_size", "classes"))
    mean, std = (tuple(float(value) for value in data[name]) for name in ("mean", "std"))
    if not len(mean) == len(std) == channels:
        raise ValueError(f"{channels} channels, but {len(mean)} means and {len(std)} deviations")
    return Inputs(channels, image_size, classes, mean, std)


def _count(value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is not a whole number of at least {least}")
    return value


def _text(value: Any) -> str:
    if not (isinstance(value, str) and value.isprintable()):  # it may go to a terminal
        raise ValueError(f"{value!r} is not printable text")
    return value


def _record(data: dict[str, Any]) -> Record:
    _count(data["epoch"])
    for name, value in data.items():
        _text(name)
        if type(value) not in (int, float) and (name.endswith("_accuracy") or not _text(value)):
            raise ValueError(f"{name}: {value!r} is not a number")
        if type(value) is int and abs(value) >= 2**64:
            raise ValueError(f"{name}: is too large a number")
    return data


def _same_tensors(
    expected: Mapping[str, tuple[torch.Size, torch.dtype]],
    found: Mapping[str, tuple[torch.Size, torch.dtype]],
) -> None:
    """Raise `UserError` naming the first tensor that the network and the ticket have not in common."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            network, ticket = (
                f"{tuple(of[name][0])} {of[name][1]}" if name in of else "none" for of in (expected, found)
            )
            raise UserError(f"does not fit its network: {name!r} is {network} there, {ticket} in the ticket")


def _compact(tensor: Tensor) -> Tensor:
    """The tensor, contiguous; as its one value, (), where all its elements are the same bits."""
    flat = tensor.contiguous().flatten()
    raw = flat.view(torch.uint8).view(len(flat), -1)
    return flat[0].clone() if len(flat) and bool((raw == raw[0]).all()) else flat.view(tensor.shape).clone()


@torch.no_grad()
def _gains(network: nn.Module) -> dict[str, Tensor]:
    """The magnitude of each layer's effective weights, as training computed it: its sum rounds otherwise
    on another device or with other threads."""
    return {
        chain[0].layer.name: getattr(module, attribute).abs().max().cpu()
        for module in network.modules()
        if parametrize.is_parametrized(module)
        for attribute, chain in module.parametrizations.items()  # type: ignore[operator, union-attr]
        if isinstance(chain[0], Mask)
    }


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
