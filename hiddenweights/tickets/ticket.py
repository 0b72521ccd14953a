"""A found subnetwork as a file: the seed of its weights and at most one bit per weight (docs/ticket.md).

A ticket contains the config of the cell, the mask of each layer as a Rice code, the buffers and other values
that evaluation needs, checksums, the last record, and versions. Reading a ticket executes no code and takes
memory in proportion to the network that it names. Any fault of a file raises `UserError`.
"""

import hashlib
import json
import platform
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

from hiddenweights import own as user_code
from hiddenweights.atomic import replacing
from hiddenweights.config import Arithmetic, DataConfig
from hiddenweights.errors import UserError, shown
from hiddenweights.flat import to_dict
from hiddenweights.identity import Resolved
from hiddenweights.masking.masks import METHODS, Mask
from hiddenweights.masking.rng import permutation, stream
from hiddenweights.masking.supermask import set_weights, weight_layers
from hiddenweights.models import build_network, channels_last
from hiddenweights.records import Record, checksum
from hiddenweights.tickets.contents import Inputs, has_ticket, parts, same_tensors
from hiddenweights.tickets.layers import FORMAT, MAGIC, open_body, read_header
from hiddenweights.tickets.rice import encode_mask
from hiddenweights.versions import versions

MAX_BYTES = 2**30  # larger files are refused

_TIMES = ("seconds", "images_per_second")  # left out, so that every run of a cell gives the same ticket


@dataclass(frozen=True, slots=True)
class Ticket:
    """A found subnetwork. `masks` and `state` are on the CPU, under the names of the plain network."""

    config: Resolved
    inputs: Inputs
    masks: dict[str, Tensor]
    """Bool, each with the shape of its weight."""
    gains: dict[str, Tensor]
    """For `biprop`: the magnitude of the weights of each layer, float32 (). Otherwise empty."""
    state: dict[str, Tensor]
    """The state dict without the masked weights. Shape () stands for a tensor of a single value."""
    weights_checksum: str
    record: Record
    """The record of the last epoch, without times and per-layer values."""
    versions: dict[str, str]

    @classmethod
    def of(
        cls, config: Resolved, network: nn.Module, masks: Mapping[str, Tensor], inputs: Inputs, record: Record
    ) -> "Ticket":
        """The ticket of a trained `network` with these `masks` (bool, by name) and this last `record`.

        Raises `UserError` for methods that change the weights (`dense`, `finetune`, `iterand`) and for a
        method of the user whose effective weights are not those of the seed times the masks, and
        `ValueError` if the record does not describe these masks.
        """
        if not has_ticket(config):
            raise UserError(
                f"model.method: {config.model.method!r} changes the weights, and a ticket holds only"
                " a mask over those of the seed"
            )
        masks = {name: mask.cpu() for name, mask in masks.items()}
        packed = {name: np.packbits(mask.numpy()) for name, mask in masks.items()}
        if checksum(packed) != record["mask_checksum"]:
            raise ValueError(f"the record of epoch {record['epoch']} is not that of the network as it stands")
        plain = network.state_dict()
        if wrong := [name for name, value in plain.items() if not isinstance(value, Tensor)]:
            raise UserError(
                f"model.arch: {wrong[0]!r} of the state dict is not a tensor; a ticket stores tensors only"
            )
        ticket = cls(
            config=replace(config, data=replace(config.data, root=DataConfig().root)),
            inputs=inputs,
            masks=masks,
            gains=_gains(network) if config.model.method == "biprop" else {},
            state={
                name: _compact(tensor.detach().cpu())
                for name, tensor in plain.items()
                if "parametrizations" not in name.split(".")
            },
            weights_checksum=str(record["weights_checksum"]),
            record={name: value for name, value in record.items() if "/" not in name and name not in _TIMES},
            versions=versions("hiddenweights", "torch", "numpy") | {"machine": platform.machine()},
        )
        if config.model.method not in METHODS:
            _check_plain(network, masks, ticket.weights())
        return ticket

    @property
    def precision(self) -> Arithmetic:
        """The precision of training. In it the network gives the same logits as at the end of training."""
        used = self.record.get("precision", self.config.train.precision)
        return "bfloat16" if used == "bfloat16" else "float32"

    def to_bytes(self) -> bytes:
        """The content of the ticket's file."""
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

    def save(self, path: str | Path) -> None:
        """Write the ticket to `path` atomically."""
        content = self.to_bytes()
        with replacing(Path(path)) as partial:
            partial.write_bytes(content)

    @classmethod
    def from_bytes(cls, content: bytes, source: str = "ticket") -> "Ticket":
        """The inverse of `to_bytes`. Raises `UserError` that names `source` for any other content."""
        body = open_body(content, source)
        try:
            tensors = safetensors.torch.load(body)
            return cls(**parts(read_header(body), tensors))
        except UserError as error:
            raise UserError(f"{source}: {shown(error)}") from error
        except (
            SafetensorError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            raise UserError(f"{source}: holds no ticket: {shown(_first_line(error))}") from error

    def shuffled(self, seed: int) -> "Ticket":
        """The ticket with a random mask of the same size per layer, drawn with `seed`."""
        masks = {}
        for name, mask in self.masks.items():
            order = torch.from_numpy(permutation(stream(seed, "shuffle", name), mask.numel()))
            masks[name] = mask.flatten()[order].view(mask.shape)
        return replace(self, masks=masks)

    def weights(self) -> dict[str, Tensor]:
        """The random weights behind the masks, drawn from the seed: float32, by name.

        Raises `UserError` if they are not bit for bit those of training.
        """
        model = self.config.model
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
        """The subnetwork as a plain network on the CPU, in evaluation mode. Dropped weights are zero.

        `arch` is the constructor of the network, ``FILE.py:FUNCTION`` or ``module:FUNCTION``. It is needed if
        the ticket names one, because a ticket alone must never cause code to run. Raises `UserError` if the
        network does not fit the ticket, or if its weights are not those of training.
        """
        # The network must have exactly the tensors of the ticket.
        network = self._plain(arch)
        expected = network.state_dict()
        names = {name for _, _, name in weight_layers(network)}
        same_tensors(
            {name: (expected[name].shape, torch.bool) for name in names},
            {name: (mask.shape, mask.dtype) for name, mask in self.masks.items()},
        )
        same_tensors(
            {name: (t.shape, t.dtype) for name, t in expected.items() if name not in names},
            {
                name: (expected[name].shape if name in expected and t.ndim == 0 else t.shape, t.dtype)
                for name, t in self.state.items()
            },
        )
        # Fill it with the stored state and the weights of the seed.
        state = {name: t.expand(expected[name].shape).clone() for name, t in self.state.items()}
        for name, weight in self.weights().items():
            gain = self.gains.get(name)
            state[name] = weight if gain is None else gain * weight.sign()
        network.load_state_dict(state, assign=True)
        # Multiply in channels_last, exactly as training does. The memory format (also that of 1x1 kernels,
        # which the multiplication decides) fixes the order of summation, and with it the last bits.
        channels_last(network)
        for owner, attribute, name in weight_layers(network):
            weight = getattr(owner, attribute)
            weight.data = weight.data * self.masks[name]
        return network.eval()

    def _plain(self, arch: str | None) -> nn.Module:
        """The network without values (on torch's meta device), if its constructor supports that."""
        model, inputs = self.config.model, self.inputs
        if (own := ":" in model.arch) != (arch is not None):
            hint = (
                f"needs your code: arch={user_code.plain(model.arch)!r}"
                if own
                else f"takes no arch, but got {arch!r}"
            )
            raise UserError(f"model.arch: the ticket of {model.arch!r} {hint}")
        if arch and arch.partition(":")[0].endswith(".py"):
            arch = user_code.versioned(arch, "model.arch", "networks")
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
            except (RuntimeError, TypeError, OverflowError) as error:  # sizes that torch does not support
                raise UserError(f"model.arch: {model.arch!r} cannot be built: {_first_line(error)}") from None


class _EmptyOnMeta(TorchFunctionMode):
    """Puts only parameters and buffers on torch's meta device: RegNets compute shapes with tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func in (torch.empty, torch.zeros, torch.ones)
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if made else {}))


def read_ticket(path: str | Path) -> Ticket:
    """The ticket at `path`. Raises `UserError` if there is none, or if it is not intact."""
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
    """The subnetwork at `path`, ready to evaluate: a plain network on `device`, dropped weights zero.

    It takes float32 (batch, channels, size, size), normalised as `read_ticket(path).inputs` says, and
    returns the logits (batch, classes) of the end of training. They are the same bits on the same kind of
    machine with the same number of threads, and under autocast if the ticket's `precision` is bfloat16. For
    `arch` and errors see `Ticket.network`.
    """
    ticket = read_ticket(path)
    try:
        return ticket.network(arch).to(device)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _compact(tensor: Tensor) -> Tensor:
    """The tensor, contiguous. If all its elements have the same bits: a single one of them, shape ()."""
    flat = tensor.contiguous().flatten()
    if not len(flat):
        return flat.view(tensor.shape)
    raw = flat.view(torch.uint8).view(len(flat), -1)
    return flat[0].clone() if bool((raw == raw[0]).all()) else flat.view(tensor.shape).clone()


@torch.no_grad()
def _gains(network: nn.Module) -> dict[str, Tensor]:
    """The magnitude of the effective weights per layer, as training computed it.

    It is stored because it is a sum, which rounds differently on another device or with other threads.
    """
    return {
        chain[0].layer.name: getattr(module, attribute).abs().max().cpu()
        for module in network.modules()
        if parametrize.is_parametrized(module)
        for attribute, chain in module.parametrizations.items()  # type: ignore[operator, union-attr]
        if isinstance(chain[0], Mask)
    }


@torch.no_grad()
def _check_plain(network: nn.Module, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless each effective weight of the `network` is the weight times its mask."""
    for name, mask in masks.items():
        owner, _, attribute = name.rpartition(".")
        effective = getattr(network.get_submodule(owner), attribute).cpu()
        if not torch.equal(effective, weights[name] * mask):
            raise UserError(f"model.method: {name} is not its random weight times a mask of 0 and 1")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
