"""``hiddenweights evaluate | info | export | diff``: commands on tickets.

torch is imported inside the commands, so that help appears without waiting for it.
"""

import contextlib
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from hiddenweights.atomic import replacing
from hiddenweights.config import CellConfig, TrainConfig
from hiddenweights.errors import UserError, shown
from hiddenweights.identity import id_of, pinned, short_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hiddenweights.tickets.contents import Inputs

Split = Literal["test", "validation", "train"]
Target = Literal["state_dict", "exported_program", "onnx"]
SUFFIXES: dict[Target, str] = {"state_dict": ".pt", "exported_program": ".pt2", "onnx": ".onnx"}


def evaluate(
    file: Positional[Path],
    *,
    data: str | None = None,
    root: str = "data",
    split: Split = "test",
    device: str = "auto",
    arch: str | None = None,
) -> None:
    """Measure the accuracy of a ticket's network.

    Args:
        file: The ticket.
        data: Data set, as for data.name. If not given: the one on which the ticket was found.
        root: Folder of the data set.
        split: The images to use. validation and train are the splits of the ticket's seed.
        device: cpu, cuda, cuda:N, or auto (cuda if available).
        arch: FILE.py:FUNCTION or module:FUNCTION that creates the network, if it is your own code.
    """
    TrainConfig(device=device)
    import torch

    from hiddenweights.images.dataset import load_dataset
    from hiddenweights.images.dataset import split as split_dataset
    from hiddenweights.images.stream import batches_of
    from hiddenweights.tickets.ticket import read_ticket
    from hiddenweights.training.build import device_of
    from hiddenweights.training.loop import evaluate as measure

    place = device_of(device)
    ticket = read_ticket(file)
    config = ticket.config
    named = config.data.name
    if data is None and named.startswith("hf:"):
        raise UserError(f"data: the ticket names {named!r}, which is loaded only if you name it too: --data")
    chosen = pinned(CellConfig(data=replace(config.data, name=data or named, root=root))).data
    network = ticket.network(arch)
    dataset = load_dataset(chosen)
    ticket.inputs.check(dataset)
    images = getattr(split_dataset(dataset, chosen, config.seed_of("data")), split)
    if images is None:
        raise UserError(f"split: {split!r}, but with data.protocol=paper there are no validation images")
    # As in training, for the same bits, but a file must not start any number of threads.
    torch.set_num_threads(min(config.train.threads, os.cpu_count() or 1))
    batches = batches_of(images.to(place), ticket.inputs.mean, ticket.inputs.std)
    loss, accuracy = measure(network.to(place), batches, ticket.precision)
    _print(
        f"{short_name(config)}: {split} accuracy {accuracy:.2%}, loss {loss:.4f},"
        f" on {len(images)} images of {chosen.name}"
    )
    if chosen.name == config.data.name and f"{split}_accuracy" in ticket.record and split != "train":
        _print(f"at the end of training: {ticket.record[f'{split}_accuracy']:.2%}")
        if config.model.method == "sampled":
            _print("(there over new draws of the mask; the ticket holds one draw)")


def info(file: Positional[Path]) -> None:
    """Show the content of a ticket: layers, size, accuracy, origin.

    Args:
        file: The ticket.
    """
    from hiddenweights.tickets.rice import encode_mask
    from hiddenweights.tickets.ticket import read_ticket

    ticket = read_ticket(file)
    weights = ticket.weights()
    rows: list[Sequence[object]] = []
    coded = 0
    for name, mask in ticket.masks.items():
        n, kept, code = mask.numel(), int(mask.sum()), len(encode_mask(mask.numpy().ravel())[0])
        positive = int((weights[name][mask] > 0).sum())
        coded += code
        shape = "x".join(map(str, mask.shape))
        rows.append(
            (name, shape, n, kept, f"{kept / n:.1%}", positive, kept - positive, f"{8 * code / n:.3f}")
        )
    n, kept, positive = (sum(int(str(row[i])) for row in rows) for i in (2, 3, 5))
    size = file.stat().st_size
    rest = sum(math.prod(tensor.shape) for tensor in ticket.state.values())
    rows.append(("all", "", n, kept, f"{kept / n:.1%}", positive, kept - positive, f"{8 * coded / n:.3f}"))
    accuracies = [
        f"{name} {value:.2%}" for name, value in ticket.record.items() if name.endswith("_accuracy")
    ]
    _print(
        f"{short_name(ticket.config)} on {ticket.config.data.name}, cell {id_of(ticket.config)}",
        f"after epoch {ticket.record['epoch']}: {', '.join(accuracies).replace('_', ' ')}",
        f"{size} bytes; the weights as float32 are {4 * n}, {4 * n / size:.1f} times as many;"
        f" {rest} other values",
        f"weights checksum {ticket.weights_checksum} (verified)",
        ", ".join(f"{name} {value}" for name, value in ticket.versions.items()),
        "",
    )
    _table(("layer", "shape", "weights", "kept", "k", "kept > 0", "kept < 0", "bits per weight"), rows)


def export(
    file: Positional[Path], *, to: Target, output: Path | None = None, arch: str | None = None
) -> None:
    """Write a ticket's network as a plain dense model that does not need this package.

    Args:
        file: The ticket.
        to: state_dict (torch.load), exported_program (torch.export.load) or onnx.
        output: The file to write. If not given: the name of the ticket with .pt, .pt2 or .onnx.
        arch: FILE.py:FUNCTION or module:FUNCTION that creates the network, if it is your own code.
    """
    if to == "onnx":
        _need_onnx()
    import torch

    from hiddenweights.tickets.ticket import read_ticket

    path = output or file.with_suffix(SUFFIXES[to])
    with _writing(path):
        if path.is_dir():
            raise UserError(f"output: {str(path)!r} is a folder; name a file in it")
        if path.exists() and file.exists() and path.samefile(file):
            raise UserError(f"output: {str(path)!r} is the ticket itself")
    ticket = read_ticket(file)
    # In torch's default memory format, like a network that is built to load the file.
    network = ticket.network(arch).to(memory_format=torch.contiguous_format)
    with _writing(path), replacing(path) as partial:
        partial.touch()  # before the export, which takes a while
        partial.write_bytes(_EXPORTS[to](network, ticket.inputs))
    inputs = ticket.inputs
    _print(
        f"{path}: {path.stat().st_size} bytes",
        f"takes float32 (batch, {inputs.channels}, {inputs.image_size}, {inputs.image_size}),"
        f" (pixel / 255 - mean) / std with mean {inputs.mean}, std {inputs.std}",
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a `UserError` about `path`, the file that is written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output: {str(path)!r} cannot be written: {error.strerror}") from None


def diff(a: Positional[Path], b: Positional[Path]) -> None:
    """Compare two masks layer by layer: how many weights both keep, and how many two random masks would.

    Args:
        a: A ticket.
        b: Another ticket of the same network.
    """
    from hiddenweights.tickets.overlap import Overlap, overlap, total
    from hiddenweights.tickets.ticket import read_ticket

    first, second = read_ticket(a), read_ticket(b)
    shapes = [{name: tuple(mask.shape) for name, mask in t.masks.items()} for t in (first, second)]
    if shapes[0] != shapes[1]:
        names = (short_name(ticket.config) for ticket in (first, second))
        raise UserError(f"{a} and {b} are of different networks: {', '.join(names)}")
    layers = {name: overlap(mask.numpy(), second.masks[name].numpy()) for name, mask in first.masks.items()}

    def row(name: str, o: Overlap) -> Sequence[object]:
        chance = f"{o.low:.0f}..{o.high:.0f}"
        return (name, o.n, o.a, o.b, o.both, chance, o.verdict, f"{o.both / max(1, o.a):.1%}")

    if first.weights_checksum != second.weights_checksum:
        _print("The two tickets select from different weights.", "")
    columns = ("layer", "weights", "A keeps", "B keeps", "both", "chance", "verdict", "both of A's")
    _table(columns, [*(row(*item) for item in layers.items()), row("all", total([*layers.values()]))])


# --- export ------------------------------------------------------------------------------------------------


def _state_dict(network: "nn.Module", inputs: "Inputs") -> bytes:
    import torch

    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    return content.getvalue()


def _exported_program(network: "nn.Module", inputs: "Inputs") -> bytes:
    import torch

    content = io.BytesIO()
    program = _program(network, inputs)
    _name_axis(program, "batch")
    torch.export.save(program, content)
    return content.getvalue()


def _name_axis(program: "torch.export.ExportedProgram", name: str) -> None:
    """Call the one axis of any size `name`: torch numbers it, say ``s31``, and forgets the `Dim`'s name."""
    import sympy
    import torch
    from torch.utils._pytree import tree_leaves

    (numbered,) = program.range_constraints
    named = sympy.Symbol(name, positive=True, integer=True)
    for node in program.graph.nodes:
        for value in tree_leaves(node.meta.get("val")):
            sizes = [*value.shape, *value.stride()] if isinstance(value, torch.Tensor) else [value]
            for size in sizes:
                if isinstance(size, torch.SymInt):
                    symbolic: Any = size.node
                    symbolic._expr = symbolic._expr.xreplace({numbered: named})
    program.range_constraints[named] = program.range_constraints.pop(numbered)


def _onnx(network: "nn.Module", inputs: "Inputs") -> bytes:
    import torch

    program = torch.onnx.export(
        _program(network, inputs),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _program(network: "nn.Module", inputs: "Inputs") -> "torch.export.ExportedProgram":
    """The network for any batch size, without paths of this machine.

    Raises `UserError` for a network of the user whose operations torch cannot list.
    """
    import torch

    images = torch.zeros(2, inputs.channels, inputs.image_size, inputs.image_size)
    try:
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # torch raises many kinds
        line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"to: torch cannot export this network ({type(error).__name__}: {shown(line)});"
            " state_dict needs no export"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


_EXPORTS: dict[Target, Callable[["nn.Module", "Inputs"], bytes]] = {
    "state_dict": _state_dict,
    "exported_program": _exported_program,
    "onnx": _onnx,
}


def _need_onnx() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"to: 'onnx' needs {' and '.join(missing)}: pip install 'hiddenweights[onnx]'")


# --- text --------------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    text = [[str(value) for value in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for first, *others in text:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        _print("  ".join([f"{first:<{widths[0]}}", *cells]))


def _print(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
