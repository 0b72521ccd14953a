"""The masks of a figure's cells, from the tickets in their store: overlap between seeds, and first layers."""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hiddenweights.analysis.specs import SUBNETWORK
from hiddenweights.analysis.table import Table
from hiddenweights.cells.store import Store
from hiddenweights.errors import UserError
from hiddenweights.flat import from_dict
from hiddenweights.identity import Resolved, resolve
from hiddenweights.masking.distributions import draw
from hiddenweights.masking.rng import stream
from hiddenweights.tickets.layers import read_masks
from hiddenweights.tickets.overlap import Overlap, overlap, total
from hiddenweights.tickets.rice import Bits

ALL = "all layers"
# Per point of a figure: decoding a mask takes 6 ns per weight, and reading it from a remote store longer.
MOST_SEEDS = 3


@dataclass(frozen=True)
class Filters:
    """The first layer of a cell as images, (filters, channels, height, width), without and with its mask."""

    panel: str
    cell: str
    name: str
    layer: str
    weights: NDArray[np.float32]
    masked: NDArray[np.float32]


def look(points: pd.DataFrame, table: Table) -> tuple[pd.DataFrame, list[Filters]]:
    """`overlaps` and `first_layers`. Empty if a ticket cannot be read; the report then lacks them."""
    try:
        return overlaps(points, table), first_layers(points, table)
    except OSError:  # `Unreachable` or `StoreAway`, or a file that may not be read
        return pd.DataFrame(), []


def overlaps(points: pd.DataFrame, table: Table) -> pd.DataFrame:
    """The overlap of masks of different seeds: one row per panel, curve, x and layer. Empty without tickets.

    `points` has one row per cell (see `specs.points`). The result has the columns `panel`, `curve`, `x`,
    `layer` (`ALL` for all layers together) and `seeds`, and, as percentages of the weights that a mask keeps:
    `both` (kept by the next seed's mask as well), `chance` (the mean of `both` for random masks), and `low`
    and `high` (the central 95% of random masks). Up to `MOST_SEEDS` seeds are compared, each with the next.
    """
    stores = dict(zip(table.cells["cell"], table.cells["source"], strict=True))
    subnetworks = points[points["kind"] == SUBNETWORK].sort_values("seed", kind="stable")
    rows: list[dict[str, Any]] = []
    for key, cells in subnetworks.groupby(["panel", "curve", "x"], sort=False):
        some = [*cells.drop_duplicates("seed")["cell"]][:MOST_SEEDS]
        pairs = [
            found
            for a, b in itertools.pairwise(some)
            if stores[a] == stores[b] and (found := _compare(stores[a], a, b))
        ]
        if pairs and all(pair.keys() == pairs[0].keys() for pair in pairs):
            layers = {name: total([pair[name] for pair in pairs]) for name in pairs[0]}
            layers[ALL] = total([layer for pair in pairs for layer in pair.values()])
            places = dict(zip(("panel", "curve", "x"), key, strict=True))
            rows += [places | _shares(name, layer, len(pairs) + 1) for name, layer in layers.items()]
    return pd.DataFrame(rows)


def _shares(name: str, layer: Overlap, seeds: int) -> dict[str, Any]:
    share = 100 / max(1, layer.a)
    ends = {"low": layer.low * share, "high": layer.high * share}
    chance = (layer.low + layer.high) / 2 * share  # the interval is symmetric
    return {"layer": name, "seeds": seeds, "both": layer.both * share, "chance": chance, **ends}


def first_layers(points: pd.DataFrame, table: Table) -> list[Filters]:
    """The first layer of the best subnetwork of each panel, if its weights can be shown as images.

    The best one is chosen by validation accuracy, or without a validation split by test accuracy.
    """
    stores = dict(zip(table.cells["cell"], table.cells["source"], strict=True))
    names = dict(zip(table.cells["cell"], table.cells["name"], strict=True))
    subnetworks = points[points["kind"] == SUBNETWORK]
    found = []
    for panel, cells in subnetworks.groupby("panel", sort=False):
        score = cells["validation"].fillna(cells["y"])
        cell = str(cells["cell"].iloc[int(score.argmax())])
        if layer := _first_layer(stores[cell], cell):
            found.append(Filters(str(panel), cell, names[cell], *layer))
    return found


@functools.cache  # a cell's ticket never changes, and `report --watch` asks for it many times
def _compare(store: str, a: str, b: str) -> Mapping[str, Overlap]:
    """The overlap of the masks of two cells by layer. Empty if a ticket is missing or the networks differ."""
    masks = [_read(store, cell)[1] for cell in (a, b)]
    shapes = [{name: mask.shape for name, mask in layers.items()} for layers in masks]
    if shapes[0] != shapes[1]:
        return {}
    return {name: overlap(mask, masks[1][name]) for name, mask in masks[0].items()}


@functools.lru_cache(MOST_SEEDS)
def _read(store: str, cell: str) -> tuple[Any, Mapping[str, Bits]]:
    """The header and the masks of a cell's ticket. Both are empty if it is missing or damaged."""
    content = None if store.startswith("wandb:") else Store(store).ticket(cell)
    try:
        return read_masks(content, cell) if content else ({}, {})
    except UserError:
        return {}, {}


@functools.cache
def _first_layer(store: str, cell: str) -> tuple[str, NDArray[np.float32], NDArray[np.float32]] | None:
    """Name, weights and masked weights of the first layer as images; None if that is not possible."""
    header, masks = _read(store, cell)
    if not masks:
        return None
    name, mask = next(iter(masks.items()))
    try:  # only the masks of the ticket have been checked
        config = resolve(from_dict(header["config"]))
        channels, size = int(header["inputs"]["channels"]), int(header["inputs"]["image_size"])
        weights = _weights(name, mask.shape, config)
    except (UserError, KeyError, TypeError, ValueError):
        return None
    if weights.ndim == 2 and weights.shape[1] == channels * size**2:  # each unit sees the whole image
        weights = weights.reshape(-1, channels, size, size)
    if weights.ndim != 4 or weights.shape[1] not in (1, 3):
        return None
    effective = np.sign(weights) if config.model.method == "biprop" else weights
    return name, weights, effective * mask.reshape(weights.shape)


def _weights(name: str, shape: tuple[int, ...], config: Resolved) -> NDArray[np.float32]:
    """The random weights of the layer, drawn from the cell's seed."""
    model = config.model
    source = stream(config.seed_of("weights"), "weights", name)
    return draw(shape, model.distribution, source, scaled_for_k=model.k if model.scaled else None)


def mosaic(filters: NDArray[np.float32], columns: int, rows: int) -> NDArray[np.float32]:
    """The first filters side by side: (height, width, 3) in [0, 1]; 0.5 is a weight of zero, NaN a gap.

    A weight takes at least one pixel. Small filters are enlarged, so that the gaps do not dominate.
    """
    shown = filters[: columns * rows]
    zoom = max(1, 48 // shown.shape[-1])
    shown = shown.repeat(zoom, axis=2).repeat(zoom, axis=3)
    gap, (height, width) = 3, shown.shape[2:]
    colours = np.broadcast_to(
        0.5 + shown / (2 * max(float(np.abs(shown).max()), 1e-12)), (len(shown), 3, height, width)
    )
    lines = -(-len(shown) // columns)
    size = (lines * (height + gap) - gap, min(columns, len(shown)) * (width + gap) - gap, 3)
    picture = np.full(size, np.nan, np.float32)
    for i, image in enumerate(colours):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        picture[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    return picture
