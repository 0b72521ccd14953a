"""Made stores for the tests of the analysis: the layout of the real one, accuracies by formula."""

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hiddenweights.config import CellConfig
from hiddenweights.flat import to_dict, unflatten
from hiddenweights.identity import cell_id, resolve, short_name

KS = (0.1, 0.3, 0.5, 0.7, 0.9)
DISTRIBUTIONS = ("signed_constant", "kaiming_normal")
LAYERS = ("features.0", "features.2", "classifier.0")


def config(**flat: Any) -> CellConfig:
    """A small cell; ``model__k=0.5`` names the field ``model.k``."""
    named = {name.replace("__", "."): value for name, value in flat.items()}
    return unflatten({"model.arch": "conv2", "train.epochs": 3, **named})


def made_accuracy(cell: CellConfig) -> float:
    """A plateau over k with both ends falling, signed constant above except at 0.1; a little by seed."""
    model = resolve(cell).model
    noise = random.Random(cell_id(cell)).gauss(0, 0.004)
    depth = {"conv2": 0.0, "conv4": 0.01, "conv6": 0.015, "conv8": 0.02}.get(model.arch, -0.05)
    if model.method == "dense":
        return 0.93 + depth + (0.005 if cell.optim.optimizer == "adam" else 0) + noise
    k = 0.5 if model.k is None else model.k
    signed = model.distribution == "signed_constant"
    fall = 4 * abs(k - 0.5) ** 3.2 * (1.25 if signed and k < 0.2 else 1)
    return 0.92 + depth + (0.012 if signed and k > 0.2 else 0) - fall + noise


def result(cell: CellConfig, accuracy: float | None = None, layers: Iterable[str] = LAYERS) -> dict[str, Any]:
    """What `run_cell` would have written for `cell`."""
    cell = resolve(cell)
    final = made_accuracy(cell) if accuracy is None else accuracy
    dense = cell.model.method == "dense"
    history = [_record(cell, epoch, final, dense, layers) for epoch in range(1, cell.train.epochs + 1)]
    last = {name: value for name, value in history[-1].items() if "/" not in name}
    best = max(history, key=lambda record: record["validation_accuracy"])
    return {
        "format": 1,
        "cell": cell_id(cell),
        "name": short_name(resolve(cell)),
        "config": to_dict(cell),
        "history": history,
        "summary": last
        | {"best_validation_accuracy": best["validation_accuracy"], "best_epoch": best["epoch"]},
        "initial_weights_checksum": "initial" if dense else f"w{cell.seed}",
        "seconds": 1.5 * cell.train.epochs,
        "attempts": 1,
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "versions": {"hiddenweights": "0.1.0", "torch": "2.15.0", "python": "3.11.0"},
        "device": "cpu",
    }


def _record(cell: CellConfig, epoch: int, final: float, dense: bool, layers: Iterable[str]) -> dict[str, Any]:
    progress = 1 - math.exp(-3 * epoch / cell.train.epochs) + math.exp(-3)
    accuracy = 0.1 + (final - 0.1) * progress
    kept = 1.0 if dense else cell.model.k if cell.model.k is not None else 0.5
    record: dict[str, Any] = {"epoch": epoch, "lr": 0.1, "seconds": 1.5, "images_per_second": 1000.0}
    for part, shift in (("train", 0.01), ("validation", 0.002), ("test", 0.0)):
        record |= {f"{part}_loss": 1 - accuracy, f"{part}_accuracy": min(1.0, accuracy + shift)}
    record |= {"kept": kept, "weights_checksum": f"dense{epoch}" if dense else f"w{cell.seed}"}
    record |= {"mask_checksum": f"m{epoch}-{cell_id(cell)}"}
    if not dense:
        record |= {"churn": 0.1 / epoch}
        record |= {f"{what}/{layer}": kept for what in ("kept", "churn") for layer in layers}
    return record


def write_store(
    root: Path, results: Iterable[Mapping[str, Any]], sweeps: Mapping[str, Iterable[str]] | None = None
) -> Path:
    """A store of these results; `sweeps` names the cells of each sweep."""
    (root / "sweeps").mkdir(parents=True, exist_ok=True)
    (root / "cells").mkdir(exist_ok=True)
    (root / "store.json").write_text(json.dumps({"format": 1}))
    for found in results:
        folder = root / "cells" / found["cell"]
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text(json.dumps(found))
    for name, cells in (sweeps or {}).items():
        plan = {"name": name, "cells": [*cells], "axes": {}, "overrides": {}, "launched": "2026-01-01"}
        (root / "sweeps" / f"{name}.json").write_text(json.dumps(plan))
    return root


def grid(
    archs: Iterable[str] = ("conv2", "conv4"),
    ks: Iterable[float] = KS,
    distributions: Iterable[str] = DISTRIBUTIONS,
    seeds: Iterable[int] = (0, 1, 2),
    **flat: Any,
) -> list[CellConfig]:
    """The cells of a figure over k: subnetworks, and dense baselines by SGD and Adam."""
    archs, ks, distributions, seeds = [*archs], [*ks], [*distributions], [*seeds]
    subnetworks = [
        config(model__arch=arch, model__k=k, model__distribution=distribution, seed=seed, **flat)
        for arch in archs for distribution in distributions for k in ks for seed in seeds
    ]  # fmt: skip
    dense = [
        config(model__arch=arch, model__method="dense", optim__optimizer=optimizer, seed=seed, **flat)
        for arch in archs for optimizer in ("sgd", "adam") for seed in seeds
    ]  # fmt: skip
    return subnetworks + dense


def made_store(root: Path, sweep: str, cells: Iterable[CellConfig]) -> Path:
    """A store in which all `cells`, planned as `sweep`, are finished."""
    results = [result(cell) for cell in cells]
    return write_store(root, results, {sweep: [found["cell"] for found in results]})
