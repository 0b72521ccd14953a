"""Checkpoints that are complete or absent: written to a second file, renamed, and verified by a digest."""

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

    The folder is created, but not its parent: that may be a mount that is missing for a while.
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
    """The newest intact state of `folder`, on the CPU; None if there is none.

    If the newest file is truncated or altered, the previous one is used. No code in a file is executed
    (`torch.load` with `weights_only`).
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
