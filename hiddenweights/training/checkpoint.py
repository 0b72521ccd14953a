"""Checkpoints that are whole or absent: written beside, renamed into place, verified by digest."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

_NAME = "checkpoint.pt"
_PREVIOUS = "previous.pt"
_DIGEST_BYTES = 32


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `folder`, keeping the one before it.

    The folder is made, what it lies in is not: that may be a mount that has gone, and will be back.
    """
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    partial = folder / f"{_NAME}.{os.getpid()}.partial"
    try:
        partial.write_bytes(hashlib.sha256(payload).digest() + payload)
        if (folder / _NAME).exists():
            os.replace(folder / _NAME, folder / _PREVIOUS)
        os.replace(partial, folder / _NAME)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest intact state of `folder`, on the CPU; None when there is none.

    A file that is cut short or altered is passed over for the one before it. Nothing in a file is ever
    executed (`torch.load` with `weights_only`).
    """
    for name in (_NAME, _PREVIOUS):
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            return state
    return None
