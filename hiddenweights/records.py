"""The record of a finished epoch, and the checksum of weights and masks."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, float | int | str]
"""The numbers of one epoch by name; `Trainer.epochs` lists the names."""


def checksum(arrays: "Mapping[str, np.ndarray]") -> str:
    """A digest of named arrays in any order: 128 bits of BLAKE2b over names and bytes, as hex."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(name.encode() + b"\0" + arrays[name].tobytes())
    return digest.hexdigest()
