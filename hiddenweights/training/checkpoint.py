"""Checkpoints that are complete or absent: written to a second file, renamed, and verified by a digest."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiddenweights.errors import shown
from hiddenweights.identity import Resolved, id_of

_NAME = "checkpoint.pt"
_PREVIOUS = "previous.pt"
_DIGEST_BYTES = 32
# The values of each record that later code relies on.
_NUMBERS = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "kept", "seconds")
_TEXTS = ("weights_checksum", "mask_checksum")


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


def load_checkpoint(folder: Path, check: Callable[[Any], None] = lambda state: None) -> dict[str, Any] | None:
    """The newest intact state of `folder`, on the CPU; None when there is none.

    A file that is cut short or altered, or whose state `check` refuses with a `ValueError`, is passed over
    for the one before it; a warning says so. Nothing in a file is ever executed (`torch.load` with
    `weights_only`).
    """
    for name in (_NAME, _PREVIOUS):
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        try:
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("its checksum does not match")
            state: dict[str, Any] = _load(payload)
            check(state)
        except ValueError as error:
            logging.getLogger(__name__).warning("%s is passed over: %s", folder / name, shown(error))
            continue
        return state
    return None


def check_state(
    state: Any, config: Resolved, data: str, network: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    """Raise `ValueError` unless a trainer of the cell `config` saved `state`, on data of digest `data`."""
    cell, epochs = id_of(config), config.train.epochs
    if not isinstance(state, dict) or state.get("cell") != cell:
        raise ValueError(f"it is not of cell {cell}")
    if state.get("data", data) != data:  # the same name, but another folder or other files in it
        raise ValueError("it was trained on other data")
    if type(state.get("steps")) is not int or not 0 <= state["steps"] < 2**63:
        raise ValueError("steps: is no count")
    if state.get("precision", "float32") not in ("float32", "bfloat16"):
        raise ValueError("precision: is neither float32 nor bfloat16")
    if len(saved_history(state)) > epochs:
        raise ValueError(f"history: has more than {epochs} epochs")
    _check_tensors(state.get("network"), network.state_dict(), "network")
    if optimizer is not None:
        optimizer_state(state, optimizer)


def saved_history(state: Mapping[str, Any]) -> list[dict[str, float | int | str]]:
    """The records in `state`. Raises `ValueError` if they are not valid records."""
    if not isinstance(state.get("history"), str):
        raise ValueError("history: is not a text")
    try:
        history = json.loads(state["history"])
    except RecursionError:
        raise ValueError("history: is nested too deeply") from None
    if not isinstance(history, list):
        raise ValueError("history: is not a list")
    for number, record in enumerate(history, start=1):
        if not isinstance(record, dict) or not all(map(_plain, record.values())):
            raise ValueError("history: a record is not an object of numbers and texts")
        if any(type(record.get(name)) not in (int, float) for name in _NUMBERS):
            raise ValueError(f"history: the record of epoch {number} lacks one of {', '.join(_NUMBERS)}")
        if record.get("epoch") != number or not all(isinstance(record.get(name), str) for name in _TEXTS):
            raise ValueError(f"history: the record of epoch {number} is not one of it")
    return history


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return value.isprintable()
    return type(value) is float or (type(value) is int and abs(value) < 2**64)


def optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[int, Any]:
    """The saved state of `optimizer` by parameter number, as tensors in the memory format of the parameters.

    Raises `ValueError` for a state that does not fit, because torch's fused kernels trust shapes and strides.
    A parameter without saved state gets zeros.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = state["optimizer"].get("state") if isinstance(state.get("optimizer"), dict) else None
    if not isinstance(found, dict) or not found.keys() <= {*range(len(parameters))}:
        raise ValueError("optimizer: its entries are not those of this cell")
    names = ["step", "exp_avg", "exp_avg_sq"]
    if isinstance(optimizer, torch.optim.SGD):
        names = ["momentum_buffer"] if optimizer.defaults["momentum"] else []
    fitting: dict[int, Any] = {}
    for number, parameter in enumerate(parameters if found else ()):
        fitting[number] = {
            name: torch.zeros(()) if name == "step" else torch.zeros_like(parameter) for name in names
        }
        if number in found:
            _check_tensors(found[number], fitting[number], f"optimizer: parameter {number}")
            for name, tensor in fitting[number].items():
                tensor.copy_(found[number][name])
    return fitting


def _check_tensors(found: Any, expected: Mapping[str, Any], what: str) -> None:
    """Raise `ValueError` unless `found` has the names of `expected`, each with its type, shape and dtype."""
    if not isinstance(found, Mapping) or found.keys() != expected.keys():
        raise ValueError(f"{what}: its entries are not those of this cell")
    for name, own in expected.items():
        value = found[name]
        if isinstance(own, Tensor) != (type(value) is Tensor):
            raise ValueError(f"{what}: {name!r} is a {type(value).__name__}")
        if isinstance(own, Tensor) and (
            (value.shape, value.dtype, value.layout) != (own.shape, own.dtype, torch.strided)
            or value.is_quantized
        ):
            raise ValueError(f"{what}: {name!r} has another shape or type")


def _load(payload: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types, with whole paragraphs
        raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error
