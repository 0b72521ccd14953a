"""The masks in a ticket file, read without torch: the frame of the file, its layers, and their codes."""

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any

import safetensors

from hiddenweights.errors import UserError, shown
from hiddenweights.tickets.rice import Bits, decode_mask

MAGIC = b"\x93ticket\n"
DIGEST_BYTES = 32
FORMAT = 1
# Larger files are refused. The largest network of torchvision has 6.4e8 weights.
MAX_WEIGHTS = 2**30
BYTES_PER_WEIGHT = 32  # at most, while weights are drawn and masks are made
MAX_SIDES = 8  # dimensions of a weight


def open_body(content: bytes, source: str) -> bytes:
    """The safetensors in the content of a ticket file. Raises `UserError` that names `source` for damage."""
    if not content.startswith(MAGIC):
        raise UserError(f"{source}: is not a ticket")
    start = len(MAGIC) + DIGEST_BYTES
    body = content[start:]
    if hashlib.sha256(body).digest() != content[len(MAGIC) : start]:
        raise UserError(f"{source}: is damaged; its checksum does not match")
    return body


def read_header(body: bytes) -> Any:
    """The JSON header of a ticket. Raises built-in exceptions if there is none."""
    metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
    return json.loads(metadata["ticket"])


def read_masks(content: bytes, source: str) -> tuple[Any, dict[str, Bits]]:
    """The header of a ticket file and its masks by layer, bool with the shape of the weight.

    Checks the masks, not the rest of the ticket. Raises `UserError` that names `source` for any fault.
    """
    body = open_body(content, source)
    try:
        header = read_header(body)
        codes = {
            name.removeprefix("mask/"): bytes(tensor["data"])
            for name, tensor in safetensors.deserialize(body)
            if name.startswith("mask/")
        }
        return header, decode_layers(header, layer_shapes(header), codes)
    except UserError as error:
        raise UserError(f"{source}: {shown(error)}") from error
    except (
        safetensors.SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise UserError(f"{source}: holds no ticket: {shown(error)}") from error


def layer_shapes(header: Any) -> dict[str, list[int]]:
    """The shape of each layer's weight. Raises `UserError`, or built-in exceptions for another structure."""
    if type(header["format"]) is not int or header["format"] != FORMAT:
        raise UserError(f"has format {header['format']!r:.40}; this version reads format {FORMAT}")
    layers = {text(name): layer for name, layer in header["layers"].items()}
    shapes = {name: [count(side) for side in layer["shape"]] for name, layer in layers.items()}
    # Checked before any arithmetic, because a file may contain integers of any length.
    if any(len(shape) > MAX_SIDES or any(side > MAX_WEIGHTS for side in shape) for shape in shapes.values()):
        raise UserError(f"has more weights than the limit of {MAX_WEIGHTS}")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if sum(sizes.values()) > MAX_WEIGHTS:
        raise UserError(f"has more weights than the limit of {MAX_WEIGHTS}")
    _check_memory(sum(sizes.values()))
    return shapes


def decode_layers(
    header: Any, shapes: Mapping[str, list[int]], codes: Mapping[str, bytes]
) -> dict[str, Bits]:
    """The masks of the layers, each with its shape, from their codes. Raises `ValueError` for other codes."""
    if codes.keys() != shapes.keys():
        raise ValueError("masks and layers differ")
    masks = {}
    for name, shape in shapes.items():
        layer = header["layers"][name]
        mask = decode_mask(codes[name], math.prod(shape), count(layer["kept"], 0), count(layer["rice"], 0))
        masks[name] = mask.reshape(shape)
    return masks


def _check_memory(weights: int) -> None:
    """Raise `UserError` if so many weights do not fit in memory. (A small file can name a huge network.)"""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # the system does not report it
        return
    if (needed := BYTES_PER_WEIGHT * weights) > memory / 2:
        raise UserError(
            f"names a network of {weights} weights, which takes up to {needed / 2**30:.1f} GiB, more than"
            f" half of this machine's {memory / 2**30:.1f}"
        )


def count(value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is not a whole number of at least {least}")
    return value


def text(value: Any) -> str:
    if not (isinstance(value, str) and value.isprintable()):  # it may go to a terminal
        raise ValueError(f"{value!r} is not printable text")
    return value
